"""PTQ4ViT and its baseline (Yuan et al., ECCV 2022) as recipes.

Both quantize the operands of matrix products alone. What lies between them stays in float in the
fake-quantized network; the integer program carries it in wide codes.
"""

from __future__ import annotations

from functools import partial

from hwsim.quantize.quantizers.protocol import Quantizer
from hwsim.quantize.quantizers.twin import TwinGelu, TwinSoftmax
from hwsim.quantize.quantizers.uniform import Uniform
from hwsim.quantize.recipe import Lowering, Recipe, full_bits, parse_bits
from hwsim.quantize.search.settings import ScaleSearch
from hwsim.quantize.weights import SymmetricWeights

CALIBRATION_IMAGES = 32
# What the baseline searches with: factors from 0.5, and one round.
BASELINE_ALPHA = 0.5


def base_ptq(
    bits: str = "8/8/8",
    *,
    metric: str = "cosine",
    rounds: int = 1,
    alpha: float = BASELINE_ALPHA,
    mode: str = "parallel",
    seed: int = 0,
    as_released: bool = False,
    calibration_batch: int = CALIBRATION_IMAGES,
    lowering: Lowering | None = None,
) -> Recipe:
    """BasePTQ: symmetric uniform codes at every operand, searched by the cosine of outputs.

    Parameters
    ----------
    bits : str
        "W/A/Attn".
    metric, rounds, alpha, mode, seed
        See `ScaleSearch`.
    as_released : bool
        A step for each head of the attention too (fake quantization only) and the released gradients.
    calibration_batch : int
    lowering : Lowering, optional

    Raises
    ------
    HwsimError
        A value out of range.
    """
    search = ScaleSearch(metric, rounds=rounds, alpha=alpha, mode=mode, as_released=as_released, seed=seed)
    return _recipe("base-ptq", bits, search, False, False, calibration_batch, lowering)


def ptq4vit(
    bits: str = "8/8/8",
    *,
    metric: str = "hessian",
    rounds: int = 3,
    alpha: float = 0.01,
    mode: str = "parallel",
    seed: int = 0,
    as_released: bool = False,
    twin_softmax: bool = True,
    twin_gelu: bool = True,
    calibration_batch: int = CALIBRATION_IMAGES,
    lowering: Lowering | None = None,
) -> Recipe:
    """PTQ4ViT: twin uniform codes behind softmax and GELU, scales searched by the weighted error of outputs.

    Parameters
    ----------
    bits : str
        "W/A/Attn".
    metric, rounds, alpha, mode, seed
        See `ScaleSearch`.
    as_released : bool
        What the released code does and the paper does not: both ranges of the softmax added up, a free
        positive step behind GELU, values in float while the softmax is searched, gradients that are rounding
        noise (fake quantization only).
    twin_softmax, twin_gelu : bool
        Without, symmetric uniform codes there: for ablations.
    calibration_batch : int
    lowering : Lowering, optional

    Raises
    ------
    HwsimError
        A value out of range.
    """
    search = ScaleSearch(metric, rounds=rounds, alpha=alpha, mode=mode, as_released=as_released, seed=seed)
    return _recipe("ptq4vit", bits, search, twin_softmax, twin_gelu, calibration_batch, lowering)


def _recipe(
    name: str,
    bits: str,
    search: ScaleSearch,
    twin_softmax: bool,
    twin_gelu: bool,
    calibration_batch: int,
    lowering: Lowering | None,
) -> Recipe:
    bits = full_bits(bits)
    weight, activation, attention = parse_bits(bits)
    released = search.as_released
    uniform, by_head = Uniform(activation, symmetric=True), Uniform(activation, symmetric=True, heads=True)
    points: dict[str, Quantizer] = dict.fromkeys(("norm", "pooled", "context", "feature", "gelu"), uniform)
    points |= dict.fromkeys(("query", "key", "value"), by_head)
    points["attention"] = Uniform(attention, symmetric=True, heads=released)
    if twin_softmax:
        points["attention"] = TwinSoftmax(attention, as_released=released)
    if twin_gelu:
        points["gelu"] = TwinGelu(activation, power_of_two=not released)
    parts = [name, bits, search.metric]
    if name == "ptq4vit":
        parts += [f"{part} uniform" for part, twin in (("softmax", twin_softmax), ("gelu", twin_gelu)) if not twin]
    parts += ["sequential"] * (search.mode == "sequential") + ["as released"] * released
    return Recipe(
        " ".join(parts),
        SymmetricWeights(weight, groups=1),
        points,
        # Queries, keys and values have a scale each, every channel of the patch projection its own.
        weights_at={"qkv": SymmetricWeights(weight, groups=3), "patch": SymmetricWeights(weight)},
        calibration_batch=calibration_batch,
        lowering=lowering or Lowering(),
        search=search,
    )


def ptq4vit_table(batch: int = CALIBRATION_IMAGES, *, as_released: bool = False, seed: int = 0) -> dict[str, Recipe]:
    """The published table as recipes by row label: BasePTQ, PTQ4ViT, and PTQ4ViT with parts of it left out.

    Parameters
    ----------
    batch : int
        Images a calibration batch.
    as_released, seed
        See `ptq4vit`.
    """
    rows: dict[str, Recipe] = {}
    for bits in ("8/8/8", "6/6/6", "4/4/4"):
        base = partial(base_ptq, bits, as_released=as_released, seed=seed, calibration_batch=batch)
        whole = partial(ptq4vit, bits, as_released=as_released, seed=seed, calibration_batch=batch)
        rows[f"BasePTQ {bits}"] = base()
        rows[f"Hessian {bits}"] = whole(twin_softmax=False, twin_gelu=False)
        rows[f"Hessian, softmax twin {bits}"] = whole(twin_gelu=False)
        rows[f"Hessian, GELU twin {bits}"] = whole(twin_softmax=False)
        rows[f"softmax twin, GELU twin {bits}"] = whole(metric="cosine")
        rows[f"PTQ4ViT {bits}"] = whole()
    return rows
