"""Recipes: which quantizer stands at which point, and how wide the integers of the program are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from golden.errors import HwsimError
from hwsim.quantize.observers import AdaLog, Log2, PowerOfTwo, Quantizer, Uniform


@dataclass(frozen=True)
class Lowering:
    """Widths of the integer program that no published procedure fixes.

    Parameters
    ----------
    hidden_bits : int
        Codes between the first MLP layer and the GELU table. On DeiT-Tiny 2.0 % of the codes behind
        the table are a step off at 10 bits, 0.5 % at 12.
    multiplier_bits : int
        Dyadic multipliers.
    exponential_fraction_bits : int
        Upper limit of i-exp's n (30 as published); a layer uses fewer when that gives the same codes.
    probability_bits : int
        Fixed-point probabilities before a uniform or AdaLog attention quantizer.
    mantissa_bits, radicand_bits, gamma_bits : int
        LayerNorm: reciprocal square root and gamma.
    accumulator_bits : int or None
        Accumulators of the linear layers; None takes the narrowest that is proven.
    overflow : {"prove", "wrap", "saturate"}
        What a narrower accumulator does.
    """

    hidden_bits: int = 12
    multiplier_bits: int = 16
    exponential_fraction_bits: int = 20
    probability_bits: int = 16
    mantissa_bits: int = 12
    radicand_bits: int = 16
    gamma_bits: int = 12
    accumulator_bits: int | None = None
    overflow: str = "prove"


@dataclass(frozen=True)
class Recipe:
    """A declarative quantization of a network.

    Parameters
    ----------
    name : str
    weight_bits : int
        Symmetric weights of one scale an output channel, range by minimum and maximum.
    points : mapping of str to Quantizer
        By the role of the point, see `hwsim.networks.graph.FloatNode`.
    calibration_batch : int
        Images a batch; the last batch settles what the procedure takes from it.
    lowering : Lowering
    """

    name: str
    weight_bits: int
    points: Mapping[str, Quantizer]
    calibration_batch: int = 100
    lowering: Lowering = field(default_factory=Lowering)


UNIFORM_ROLES = (
    "input",
    "patch",
    "embed",
    "position",
    "norm",
    "qkv",
    "scores",
    "context",
    "projection",
    "gelu",
    "mlp",
    "feature",
    "logits",
)


def parse_bits(text: str) -> tuple[int, int, int]:
    """Widths "W/A/Attn" of weights, activations and attention.

    Raises
    ------
    HwsimError
        Not three integers between 2 and 8.
    """
    try:
        weight, activation, attention = (int(part) for part in text.split("/"))
    except ValueError:
        raise HwsimError(
            f"bits must be three integers such as 8/8/4 (weights/activations/attention), not {text!r}"
        ) from None
    for name, value in (("weights", weight), ("activations", activation), ("attention", attention)):
        if not 2 <= value <= 8:
            raise HwsimError(f"bits {text!r}: {name} must have between 2 and 8 bits, not {value}")
    return weight, activation, attention


def fq_vit(
    bits: str = "8/8/4",
    *,
    pts: bool = True,
    attention: str = "auto",
    calibration_batch: int = 100,
    lowering: Lowering | None = None,
) -> Recipe:
    """The FQ-ViT recipe (Lin et al., IJCAI 2022) with MinMax ranges.

    Parameters
    ----------
    bits : str
        "W/A/Attn".
    pts : bool
        Power-of-two scales at the LayerNorm inputs; without, one scale a tensor.
    attention : {"auto", "lis", "uniform", "adalog"}
        Quantizer of the softmax output. "auto" is Log-Int-Softmax up to 5 bits and uniform
        above, which are the published rows 8/8/4 (PTS, LIS) and 8/8/8 (PTS).
    calibration_batch : int
    lowering : Lowering, optional

    Raises
    ------
    HwsimError
        Bits or attention quantizer out of range.
    """
    weight, activation, attention_bits = parse_bits(bits)
    kinds: dict[str, type[Log2] | type[Uniform] | type[AdaLog]] = {"lis": Log2, "uniform": Uniform, "adalog": AdaLog}
    kind = ("lis" if attention_bits <= 5 else "uniform") if attention == "auto" else attention
    if kind not in kinds:
        raise HwsimError(f"attention quantizer must be one of auto, {', '.join(kinds)}, not {attention!r}")
    points: dict[str, Quantizer] = {role: Uniform(activation) for role in UNIFORM_ROLES}
    points["residual"] = PowerOfTwo(activation) if pts else Uniform(activation)
    points["attention"] = kinds[kind](attention_bits)
    label = "fq-vit " + bits + (" pts" if pts else "") + f" {kind}"
    return Recipe(label, weight, points, calibration_batch, lowering or Lowering())


RECIPES = {"fq-vit": fq_vit}
