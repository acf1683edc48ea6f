"""AdaLog (Wu et al., ECCV 2024) and RepQ-ViT (Li et al., ICCV 2023), on which it stands, as recipes.

Both quantize the operands of matrix products alone; what lies between them stays in float in the fake-quantized
network, and the integer program carries it in wide codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from golden.errors import HwsimError
from hwsim.quantize.quantizers.adalog import AdaLog
from hwsim.quantize.quantizers.log_sqrt2 import LogSqrt2, ShiftLogSqrt2
from hwsim.quantize.quantizers.protocol import Quantizer
from hwsim.quantize.quantizers.shift_adalog import ShiftAdaLog
from hwsim.quantize.quantizers.twin import TwinGelu, TwinSoftmax
from hwsim.quantize.quantizers.uniform import Uniform
from hwsim.quantize.recipe import Lowering, Recipe, full_bits, parse_bits
from hwsim.quantize.reconstruct.settings import Reconstruction
from hwsim.quantize.search.settings import PairSearch, PercentileSearch
from hwsim.quantize.weights import AsymmetricWeights

CALIBRATION_IMAGES = 32
# q of base 2.
LOG2_Q = 37

ATTENTION = ("adalog", "log2", "log-sqrt2", "twin", "uniform", "float")
GELU = ("adalog", "log2", "log-sqrt2", "twin", "uniform")
# Behind the search: nothing, learned rounding of the weights, or that and learned steps of the activations.
RECONSTRUCT = ("none", "brecq", "brecq-lsq")


def repq_vit(
    bits: str = "4/4/4",
    *,
    reconstruct: str = "none",
    iterations: int = 0,
    block_inputs: str = "",
    search_images: int = CALIBRATION_IMAGES,
    calibration_batch: int = CALIBRATION_IMAGES,
    lowering: Lowering | None = None,
) -> Recipe:
    """RepQ-ViT: reparameterized LayerNorm outputs, log-sqrt2 attention, ranges by percentiles.

    Parameters
    ----------
    bits : str
        "W/A/Attn".
    reconstruct, iterations, block_inputs, search_images
        See `reconstructed`.
    calibration_batch : int
        Does not matter: the images of the search are one batch.
    lowering : Lowering, optional

    Raises
    ------
    HwsimError
        Bits out of range.
    """
    bits = full_bits(bits)
    weight, activation, attention = parse_bits(bits)
    uniform = Uniform(activation)
    points: dict[str, Quantizer] = dict.fromkeys(
        ("norm", "pooled", "query", "key", "value", "context", "gelu", "feature"), uniform
    )
    points |= {"input": Uniform(8), "attention": LogSqrt2(attention)}
    recipe = Recipe(
        f"repq-vit {bits}",
        AsymmetricWeights(weight),
        points,
        calibration_batch=calibration_batch,
        lowering=lowering or Lowering(),
        search=PercentileSearch(),
        reparameterize=True,
    )
    return reconstructed(recipe, reconstruct, iterations, block_inputs, search_images)


def reconstructed(
    recipe: Recipe, kind: str, iterations: int = 0, block_inputs: str = "", search_images: int = CALIBRATION_IMAGES
) -> Recipe:
    """A recipe with a reconstruction of the blocks behind its search.

    Parameters
    ----------
    recipe : Recipe
    kind : {"none", "brecq", "brecq-lsq"}
        The rounding of the weights alone, or the steps of the activations too.
    iterations : int
        Of each block; 0 takes the default of `Reconstruction`.
    block_inputs : {"", "float", "quantized"}
        See `Reconstruction`; "" takes its default.
    search_images : int
        Observers and search see the first so many calibration images; the papers give them 32, also of the 1 024 that
        a reconstruction sees. 0 takes all.

    Raises
    ------
    HwsimError
        A value out of range, or settings of a reconstruction without one.
    """
    if kind not in RECONSTRUCT:
        raise HwsimError(f"reconstruction must be one of {', '.join(RECONSTRUCT)}, not {kind!r}")
    if search_images < 0:
        raise HwsimError(f"images of the search cannot be {search_images}; 0 takes all")
    if kind == "none":
        if iterations or block_inputs:
            raise HwsimError("iterations and block inputs are those of a reconstruction; add --reconstruct brecq")
        return replace(recipe, search_images=search_images)
    settings = Reconstruction(activations=kind == "brecq-lsq")
    if iterations:
        settings = replace(settings, iterations=iterations)
    if block_inputs:
        settings = replace(settings, inputs=block_inputs)
    name = f"{recipe.name} {settings.label}"
    return replace(recipe, name=name, search_images=search_images, reconstruct=settings)


def adalog(
    bits: str = "4/4/4",
    *,
    attention: str = "adalog",
    gelu: str = "adalog",
    method: str = "fpcs",
    rounds: int = 3,
    reconstruct: str = "none",
    iterations: int = 0,
    block_inputs: str = "",
    search_images: int = CALIBRATION_IMAGES,
    calibration_batch: int = CALIBRATION_IMAGES,
    lowering: Lowering | None = None,
) -> Recipe:
    """AdaLog: an adaptive logarithm base behind softmax and GELU, all quantizers by progressive search.

    Parameters
    ----------
    bits : str
        "W/A/Attn".
    attention : {"adalog", "log2", "log-sqrt2", "twin", "uniform", "float"}
        Quantizer of the softmax output.
    gelu : {"adalog", "log2", "log-sqrt2", "twin", "uniform"}
        Quantizer of GELU's output; the logarithmic ones are shifted by GELU's depth.
    method, rounds
        See `PairSearch`; "released" is FPCS with the settings of the released code.
    reconstruct, iterations, block_inputs, search_images
        See `reconstructed`.
    calibration_batch : int
    lowering : Lowering, optional

    Raises
    ------
    HwsimError
        A value out of range.
    """
    bits = full_bits(bits)
    weight, activation, attention_bits = parse_bits(bits)
    uniform, by_head = Uniform(activation), Uniform(activation, heads=True)
    points: dict[str, Quantizer] = dict.fromkeys(("norm", "pooled", "context", "feature"), uniform)
    points |= dict.fromkeys(("query", "key", "value"), by_head)
    probabilities: dict[str, Quantizer] = {
        "adalog": AdaLog(attention_bits),
        "log2": AdaLog(attention_bits, LOG2_Q),
        "log-sqrt2": LogSqrt2(attention_bits),
        "twin": TwinSoftmax(attention_bits),
        "uniform": Uniform(attention_bits),
    }
    hidden: dict[str, Quantizer] = {
        "adalog": ShiftAdaLog(activation),
        "log2": ShiftAdaLog(activation, LOG2_Q),
        "log-sqrt2": ShiftLogSqrt2(activation),
        "twin": TwinGelu(activation),
        "uniform": uniform,
    }
    if attention not in ATTENTION:
        raise HwsimError(f"attention quantizer must be one of {', '.join(ATTENTION)}, not {attention!r}")
    if gelu not in GELU:
        raise HwsimError(f"GELU quantizer must be one of {', '.join(GELU)}, not {gelu!r}")
    if attention != "float":
        points["attention"] = probabilities[attention]
    points["gelu"] = hidden[gelu]
    released = {"steps": 6, "beam": 16, "gelu_beam": 32} if method == "released" else {}
    parts = ["adalog", bits]
    parts += [f"attention {attention}"] * (attention != "adalog") + [f"gelu {gelu}"] * (gelu != "adalog")
    parts += [method] * (method != "fpcs") + [f"{rounds} rounds"] * (rounds != 3)
    recipe = Recipe(
        " ".join(parts),
        AsymmetricWeights(weight),
        points,
        calibration_batch=calibration_batch,
        lowering=lowering or Lowering(),
        search=PairSearch(method, rounds=rounds, **released),
        reparameterize=True,
    )
    return reconstructed(recipe, reconstruct, iterations, block_inputs, search_images)


def main_table(batch: int = CALIBRATION_IMAGES) -> dict[str, Recipe]:
    """Table 1: RepQ-ViT, AdaLog and AdaLog by the released search at 8, 6, 4 and 3 bits; the paper has no 8."""
    rows = {}
    for width in (8, 6, 4, 3):
        bits = f"{width}/{width}/{width}"
        rows[f"RepQ-ViT {bits}"] = repq_vit(bits, calibration_batch=batch)
        rows[f"AdaLog {bits}"] = adalog(bits, calibration_batch=batch)
        rows[f"AdaLog as released {bits}"] = adalog(bits, method="released", calibration_batch=batch)
    return rows


def component_table(batch: int = CALIBRATION_IMAGES) -> dict[str, Recipe]:
    """Table 2: AdaLog and FPCS on and off.

    Without FPCS the search alternates. Without AdaLog the paper's figures are those of its Table B with uniform codes
    behind GELU, for all networks: so this is what these rows have.
    """
    rows = {}
    for bits in ("3/3/3", "4/4/4"):
        for codes, gelu in (("uniform", "uniform"), ("AdaLog", "adalog")):
            for method in ("alternating", "fpcs"):
                name = f"{codes}, {'FPCS' if method == 'fpcs' else method} {bits}"
                rows[name] = adalog(bits, gelu=gelu, method=method, calibration_batch=batch)
    return rows


def search_table(batch: int = CALIBRATION_IMAGES) -> dict[str, Recipe]:
    """Table 5: the searches."""
    whole = partial(adalog, calibration_batch=batch)
    return {
        f"{method} {bits}": whole(bits, method=method)
        for bits in ("3/3/3", "4/4/4")
        for method in ("alternating", "brute-force", "released", "fpcs")
    }


def attention_table(batch: int = CALIBRATION_IMAGES) -> dict[str, Recipe]:
    """Table A: quantizers of the softmax output at 4, 3 and 2 bits, everything else at 4."""
    rows = {"float attention 4/4": adalog("4/4/4", attention="float", calibration_batch=batch)}
    for width in (4, 3, 2):
        for attention in ("log2", "log-sqrt2", "adalog"):
            bits = f"4/4/{width}"
            rows[f"{attention} {bits}"] = adalog(bits, attention=attention, calibration_batch=batch)
    return rows


def gelu_table(batch: int = CALIBRATION_IMAGES) -> dict[str, Recipe]:
    """Table B: quantizers of GELU's output."""
    return {f"{gelu} 4/4/4": adalog("4/4/4", gelu=gelu, calibration_batch=batch) for gelu in reversed(GELU)}


def reconstruction_table(batch: int = CALIBRATION_IMAGES) -> dict[str, Recipe]:
    """Table 4: block reconstruction on and off, of the weights alone and with the activation steps.

    Without AdaLog the paper's figures are those of uniform codes behind GELU, as in `component_table`. RepQ-ViT's rows
    are not in the paper.
    """
    rows = {}
    for bits in ("3/3/3", "4/4/4"):
        whole = partial(adalog, bits, calibration_batch=batch)
        systems: dict[str, Callable[..., Recipe]] = {
            "uniform": partial(whole, gelu="uniform"),
            "AdaLog": whole,
            "RepQ-ViT": partial(repq_vit, bits, calibration_batch=batch),
        }
        for label, recipe in systems.items():
            for kind, added in zip(RECONSTRUCT, ("", ", BRECQ", ", BRECQ and LSQ"), strict=True):
                rows[f"{label}{added} {bits}"] = recipe(reconstruct=kind)
    return rows
