"""What a recipe says about the search of its scales."""

from __future__ import annotations

from dataclasses import dataclass

from golden.errors import HwsimError

METHODS = ("fpcs", "released", "alternating", "brute-force")
# Those that keep a beam.
PROGRESSIVE = ("fpcs", "released")
# The smallest grid of both parameters around a pair.
LEAST_CHILDREN = 9
METRICS = ("hessian", "mse", "cosine")
MODES = ("parallel", "sequential")


@dataclass(frozen=True)
class ScaleSearch:
    """Alternating search of the scales of both operands of every matrix product.

    Of each operand's candidates the one is kept with which the output of the product is closest to
    that of the float layer; then the other operand's turn comes.

    Parameters
    ----------
    metric : {"hessian", "mse", "cosine"}
        Closeness: the squared error, weighted by the squared gradient of the loss at that output
        or not weighted, or the cosine between both outputs of a token.
    rounds : int
        Turns of each operand.
    alpha, beta : float
        A uniform step is its first value, which clips nothing, times ``alpha + j * (beta - alpha) / candidates``
        for j from 0 to ``candidates - 1``.
    candidates : int
    mode : {"parallel", "sequential"}
        Every layer on its float inputs; or layer after layer on the inputs that the quantized layers in
        front of it give.
    as_released : bool
        Take the gradient of the Kullback-Leibler divergence in parallel mode, which is rounding noise, and
        leave the second operand in float while the split of a twin quantizer is searched for.
    seed : int
        Of the classes drawn for the gradients.

    Raises
    ------
    HwsimError
        A value out of range.
    """

    metric: str = "hessian"
    rounds: int = 3
    alpha: float = 0.01
    beta: float = 1.2
    candidates: int = 100
    mode: str = "parallel"
    as_released: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise HwsimError(f"search metric must be one of {', '.join(METRICS)}, not {self.metric!r}")
        if self.mode not in MODES:
            raise HwsimError(f"search mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        if self.rounds < 1 or self.candidates < 1:
            raise HwsimError(
                f"a search takes at least one round and one candidate, not {self.rounds} and {self.candidates}"
            )
        if not 0 < self.alpha < self.beta:
            raise HwsimError(f"search factors need 0 < alpha < beta, not {self.alpha} and {self.beta}")

    @property
    def factors(self) -> tuple[float, ...]:
        """Multiples of the first step, rising."""
        width = (self.beta - self.alpha) / self.candidates
        return tuple(self.alpha + index * width for index in range(self.candidates))


@dataclass(frozen=True)
class PairSearch:
    """Search of both parameters of every quantizer, layer by layer on float inputs (AdaLog).

    Of each linear layer and product the two operands take turns; each is searched by the squared error of
    the layer's output, see `hwsim.quantize.search.progressive`.

    Parameters
    ----------
    method : {"fpcs", "released", "alternating", "brute-force"}
        FPCS as the paper has it, zero points refined too; FPCS as released, scales alone refined; one
        parameter after the other; all combinations.
    candidates : int
        Pairs that are tried in a step, n of the paper; of the other two methods, values of each parameter.
    steps : int
        Of FPCS, p of the paper.
    beam, gelu_beam : int
        Pairs that FPCS keeps, k of the paper, which does not say how many; behind GELU. Where more steps follow there
        are 9 candidates or more for each: the pair and its neighbours on a grid of both parameters.
    rounds : int
        Turns of each operand.
    values : int
        Activations are judged by rows (tokens) of at most so many values in all, evenly spread; 0 takes all.

    Raises
    ------
    HwsimError
        A value out of range.
    """

    method: str = "fpcs"
    candidates: int = 128
    steps: int = 4
    beam: int = 8
    gelu_beam: int = 8
    rounds: int = 3
    values: int = 1 << 18

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise HwsimError(f"search method must be one of {', '.join(METHODS)}, not {self.method!r}")
        if min(self.candidates, self.steps, self.beam, self.gelu_beam, self.rounds) < 1 or self.values < 0:
            raise HwsimError("candidates, steps, beams and rounds of a search are at least 1, values at least 0")
        children = self.candidates // max(self.beam, self.gelu_beam)
        if self.method == "fpcs" and self.steps > 1 and children < LEAST_CHILDREN:
            raise HwsimError(
                f"the search method fpcs refines both parameters of a pair and needs {LEAST_CHILDREN} candidates for "
                f"each pair that it keeps, not {children}; take more candidates or a smaller beam"
            )


@dataclass(frozen=True)
class PercentileSearch:
    """Ranges by the percentiles of least squared error, layer by layer behind what is quantized (RepQ-ViT)."""
