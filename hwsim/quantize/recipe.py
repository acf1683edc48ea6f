"""Recipes: which quantizer stands at which point, and how wide the integers of the program are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from golden.errors import HwsimError, one_of
from hwsim.networks.graph import ROLES, FloatNode
from hwsim.quantize.quantizers.adalog import AdaLog
from hwsim.quantize.quantizers.log2 import Log2
from hwsim.quantize.quantizers.power_of_two import PowerOfTwo
from hwsim.quantize.quantizers.protocol import Quantizer
from hwsim.quantize.quantizers.uniform import Uniform
from hwsim.quantize.reconstruct.settings import Reconstruction
from hwsim.quantize.search.settings import PairSearch, PercentileSearch, ScaleSearch
from hwsim.quantize.weights import SymmetricWeights, WeightQuantizer

# Address bits of the largest lookup table.
WIDEST_TABLE = 16


@dataclass(frozen=True)
class Lowering:
    """Widths of the integer program that no published procedure fixes.

    Parameters
    ----------
    hidden_bits : int
        Codes between the first MLP layer and the GELU table. On DeiT-Tiny 2.0 % of the codes behind
        the table are a step off at 10 bits, 0.5 % at 12.
    carrier_bits, score_bits : int
        Codes of the points that a recipe leaves in float; of them the scores.
    irm_bits : int
        Codes of queries and keys in front of Q-ViT's IRM.
    multiplier_bits : int
        Dyadic multipliers.
    exponential_fraction_bits : int
        Upper limit of i-exp's n (30 as published); a layer uses fewer when that gives the same codes.
    probability_bits : int
        Fixed-point probabilities before a uniform or AdaLog attention quantizer.
    mantissa_bits, radicand_bits, gamma_bits : int
        LayerNorm: reciprocal square root and gamma.
    bias_fraction_bits : int or None
        Bits of the biases of linear layers below a step of input times a step of weight, at most so many that the
        weights take 8 bits with them. None is as many for Q-ViT, whose steps are coarse, and 0 for the others.
    accumulator_bits : int or None
        Accumulators of the linear layers; None takes the narrowest that is proven.
    overflow : {"prove", "wrap", "saturate"}
        What a narrower accumulator does, in the units that have a choice: those of logarithmic codes have none.
    guard_bits : int or None
        Fraction bits of the accumulators of products on AdaLog and log-sqrt2 codes, at most; none has more than lose
        nothing. Products are cut below them. None takes as many as lose nothing and 62 bits have room for.

    Raises
    ------
    HwsimError
        `irm_bits`, `bias_fraction_bits`, `guard_bits` or `hidden_bits` out of range; the specs refuse the others.
    """

    hidden_bits: int = 12
    carrier_bits: int = 16
    score_bits: int = 12
    irm_bits: int = 12
    multiplier_bits: int = 16
    exponential_fraction_bits: int = 20
    probability_bits: int = 16
    mantissa_bits: int = 12
    radicand_bits: int = 16
    gamma_bits: int = 12
    bias_fraction_bits: int | None = None
    accumulator_bits: int | None = None
    overflow: str = "prove"
    guard_bits: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("irm_bits", 2, 16), ("bias_fraction_bits", 0, 16), ("guard_bits", 0, 40)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise HwsimError(f"{name} must be an integer between {low} and {high}, not {value}")
        if not 1 <= self.hidden_bits <= WIDEST_TABLE:
            raise HwsimError(
                f"hidden_bits {self.hidden_bits}: GELU's table has 2**hidden_bits entries, which is too wide for its "
                f"memory; take 1 to {WIDEST_TABLE}"
            )


@dataclass(frozen=True)
class Recipe:
    """A declarative quantization of a network.

    Parameters
    ----------
    name : str
    weights : SymmetricWeights or AsymmetricWeights
        Of linear layers.
    points : mapping of str to Quantizer
        By the role of the point, see `hwsim.networks.graph.FloatNode`. Points of other roles stay in
        float in the fake-quantized network; the integer program carries them in wide codes
        (`Lowering.carrier_bits`).
    weights_at : mapping of str to SymmetricWeights or AsymmetricWeights
        Other weights for layers whose output has the role.
    nodes : mapping of str to Quantizer or None
        Other quantizers at the points of single nodes, by name; None leaves a point in float.
    node_weights : mapping of str to int
        Other widths of the weights of single linear layers, by name.
    calibration_batch : int
        Images a batch; the last batch settles what the procedure takes from it.
    lowering : Lowering
    search : ScaleSearch, PairSearch or PercentileSearch, optional
        Refines the scales by the error of every layer's output, see `hwsim.quantize.search`.
    reparameterize : bool
        LayerNorm outputs have a grid a channel that goes into the parameters, see
        `hwsim.quantize.reparameterize`; of the latter two searches.
    irm : bool
        Queries and keys pass Q-ViT's Information Rectification Module, which calibration puts into the graph, see
        `hwsim.quantize.q_vit`.
    search_images : int
        The calibration images that observers and search see are the first so many; 0 takes all.
    reconstruct : Reconstruction, optional
        Behind the search: rounding of weights and steps of activations are learned block by block.

    Raises
    ------
    HwsimError
        A role that no point has.
    """

    name: str
    weights: WeightQuantizer
    points: Mapping[str, Quantizer]
    weights_at: Mapping[str, WeightQuantizer] = field(default_factory=dict)
    nodes: Mapping[str, Quantizer | None] = field(default_factory=dict)
    node_weights: Mapping[str, int] = field(default_factory=dict)
    calibration_batch: int = 100
    lowering: Lowering = field(default_factory=Lowering)
    search: ScaleSearch | PairSearch | PercentileSearch | None = None
    reparameterize: bool = False
    irm: bool = False
    search_images: int = 0
    reconstruct: Reconstruction | None = None

    def __post_init__(self) -> None:
        for role in (*self.points, *self.weights_at):
            if role not in ROLES:
                raise HwsimError(f"recipe {self.name}: no point has the role {role!r}; {one_of(role, ROLES)}")

    @property
    def file_name(self) -> str:
        """The name with nothing in it that a file name should not have."""
        return re.sub(r"[^\w.]+", "-", self.name)

    def at(self, node: FloatNode) -> Quantizer | None:
        """The quantizer at the output of a node, None where the point stays in float."""
        return self.nodes[node.name] if node.name in self.nodes else self.points.get(node.role)

    def quantizer_of(self, node: FloatNode) -> Quantizer:
        """The quantizer at the output of a node that has one."""
        quantizer = self.at(node)
        if quantizer is None:
            raise KeyError(node.name)
        return quantizer

    def weights_of(self, role: str) -> WeightQuantizer:
        """Weights of layers whose output has a role."""
        return self.weights_at.get(role, self.weights)

    def weights_for(self, node: FloatNode) -> WeightQuantizer:
        """Weights of a linear layer."""
        weights = self.weights_of(node.role)
        return replace(weights, bits=self.node_weights[node.name]) if node.name in self.node_weights else weights


UNIFORM_ROLES = (
    "input",
    "patch",
    "embed",
    "position",
    "norm",
    "pooled",
    "qkv",
    "scores",
    "table",
    "biased scores",
    "context",
    "projection",
    "gelu",
    "mlp",
    "feature",
    "logits",
)


def full_bits(text: str) -> str:
    """Widths "2" of all three kinds as "2/2/2"; others as they are."""
    return "/".join([text] * 3) if re.fullmatch(r"\d+", text) else text


def parse_bits(text: str) -> tuple[int, int, int]:
    """Widths "W/A/Attn" of weights, activations and attention, or one width of all three.

    Raises
    ------
    HwsimError
        Neither one nor three integers between 2 and 8.
    """
    try:
        weight, activation, attention = (int(part) for part in full_bits(text).split("/"))
    except ValueError:
        raise HwsimError(
            f"bits must be one integer, or three integers such as 8/8/4 (weights/activations/attention), not {text!r}"
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
    range: str = "minmax",
    calibration_batch: int = 100,
    lowering: Lowering | None = None,
) -> Recipe:
    """The FQ-ViT recipe (Lin et al., IJCAI 2022).

    Parameters
    ----------
    bits : str
        "W/A/Attn".
    pts : bool
        Power-of-two scales at the LayerNorm inputs; without, one scale a tensor.
    attention : {"auto", "lis", "uniform", "adalog"}
        Quantizer of the softmax output. "auto" is Log-Int-Softmax up to 5 bits and uniform
        above, which are the published rows 8/8/4 (PTS, LIS) and 8/8/8 (PTS).
    range : {"minmax", "ema", "percentile", "omse"}
        Observer of the uniform activations; weights and power-of-two scales have MinMax.
    calibration_batch : int
    lowering : Lowering, optional

    Raises
    ------
    HwsimError
        Bits, observer or attention quantizer out of range.
    """
    bits = full_bits(bits)
    weight, activation, attention_bits = parse_bits(bits)
    kind = ("lis" if attention_bits <= 5 else "uniform") if attention == "auto" else attention
    uniform = Uniform(activation, range)
    points: dict[str, Quantizer] = dict.fromkeys(UNIFORM_ROLES, uniform)
    points["residual"] = PowerOfTwo(activation) if pts else uniform
    if kind == "uniform":
        points["attention"] = Uniform(attention_bits, range)
    elif kind in ("lis", "adalog"):
        points["attention"] = Log2(attention_bits) if kind == "lis" else AdaLog(attention_bits)
    else:
        raise HwsimError(f"attention quantizer must be one of auto, lis, uniform, adalog, not {attention!r}")
    label = "fq-vit " + bits + (" pts" if pts else "") + f" {kind}" + (f" {range}" if range != "minmax" else "")
    return Recipe(
        label,
        SymmetricWeights(weight),
        points,
        calibration_batch=calibration_batch,
        lowering=lowering or Lowering(),
    )


def fq_vit_table(batch: int) -> dict[str, Recipe]:
    """Recipes of FQ-ViT's result table by row label, and the rows with LIS alone, which it has not.

    Parameters
    ----------
    batch : int
        Images a calibration batch.
    """
    names = {"minmax": "MinMax", "ema": "EMA", "percentile": "Percentile", "omse": "OMSE"}
    rows = {}
    for range_name, label in names.items():
        for added, bits, pts in (
            ("", "8/8/8", False),
            (" w/ PTS", "8/8/8", True),
            (" w/ PTS, LIS", "8/8/4", True),
            (" w/ LIS", "8/8/4", False),
        ):
            rows[f"{label}{added} {bits}"] = fq_vit(bits, pts=pts, range=range_name, calibration_batch=batch)
    return rows
