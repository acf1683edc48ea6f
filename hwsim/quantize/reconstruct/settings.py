"""What a recipe says about the reconstruction of its blocks."""

from __future__ import annotations

from dataclasses import dataclass

from golden.errors import HwsimError

INPUTS = ("float", "quantized")
# What the papers multiply: 20 000 iterations at these rates.
PUBLISHED_ITERATIONS = 20_000
WEIGHT_RATE, ACTIVATION_RATE = 1e-3, 4e-5


@dataclass(frozen=True)
class Reconstruction:
    """Block reconstruction (BRECQ: Li et al., ICLR 2021) with learned rounding (AdaRound: Nagel et al., ICML 2020).

    The blocks of a network are settled in order: the rounding of each weight, up or down, and, if so wanted, the
    activation steps are learned by the squared error of the block's output, see `hwsim.quantize.reconstruct.learn`.

    Parameters
    ----------
    activations : bool
        Quantize the activations meanwhile and learn their steps (LSQ: Esser et al., ICLR 2020). Otherwise they are
        floats while the weights are learned, as published.
    iterations : int
        Of every block; 20 000 as published. The default is what two processor cores do in about two minutes for the
        embedded network; there more of them find nothing better.
    batch : int
        Images an iteration.
    inputs : {"float", "quantized"}
        What a block is given: what the float network gives it, as AdaLog's released code does, or what the settled
        blocks in front of it give, as BRECQ does.
    strength : float
        Of the regulariser that moves the rounding to 0 or 1.
    warmup : float
        Share of the iterations without it.
    first_beta, last_beta : float
        Its exponent, falling from the warm-up to the end.
    weight_rate, activation_rate : float
        Adam's rates; the latter of the steps in units of their first values, falling to 0 as a cosine. 0 takes the
        published ones, raised as far as the iterations are fewer than published.
    seed : int
        Of the batches.

    Raises
    ------
    HwsimError
        A value out of range.
    """

    activations: bool = False
    iterations: int = 300
    batch: int = 32
    inputs: str = "quantized"
    strength: float = 0.01
    warmup: float = 0.2
    first_beta: float = 20.0
    last_beta: float = 2.0
    weight_rate: float = 0.0
    activation_rate: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.inputs not in INPUTS:
            raise HwsimError(f"reconstruction inputs must be {' or '.join(INPUTS)}, not {self.inputs!r}")
        if self.iterations < 1 or self.batch < 1:
            raise HwsimError(
                f"a reconstruction takes at least one iteration and one image a batch, not {self.iterations} and "
                f"{self.batch}"
            )
        if not 0 <= self.warmup < 1:
            raise HwsimError(f"the warm-up of a reconstruction is a share from 0 to below 1, not {self.warmup}")
        if not 0 < self.last_beta <= self.first_beta:
            raise HwsimError(
                f"the exponents of a reconstruction need 0 < last <= first, not {self.last_beta} and {self.first_beta}"
            )
        if min(self.strength, self.weight_rate, self.activation_rate) < 0:
            raise HwsimError("strength and rates of a reconstruction are not negative")

    @property
    def label(self) -> str:
        """What the name of a recipe says of it."""
        inputs = "" if self.inputs == Reconstruction.inputs else f" {self.inputs} inputs"
        return f"{'brecq-lsq' if self.activations else 'brecq'} {self.iterations}{inputs}"

    @property
    def rates(self) -> tuple[float, float]:
        """Rates of weights and activations."""
        raised = PUBLISHED_ITERATIONS / min(self.iterations, PUBLISHED_ITERATIONS)
        return self.weight_rate or WEIGHT_RATE * raised, self.activation_rate or ACTIVATION_RATE * raised

    @property
    def betas(self) -> list[float]:
        """Exponent of the regulariser in each iteration, 0 during the warm-up."""
        start = round(self.warmup * self.iterations)
        span = max(1, self.iterations - start)
        fall = self.first_beta - self.last_beta
        return [0.0] * start + [self.first_beta - fall * step / span for step in range(self.iterations - start)]
