"""AdaLog and RepQ-ViT on networks with dead parts, and on points that a quantizer does not take."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from conftest import quick
from golden.adalog import AdaLogMatmulSpec, adalog_tables
from golden.errors import HwsimError
from golden.log_sqrt2 import LogSqrt2MatmulSpec
from golden.requantize import RequantizeSpec
from golden.spec import IntFormat
from hwsim.audit import audit
from hwsim.cli.source import lowering_values
from hwsim.execute import Executor
from hwsim.execute.product_kernels import KERNELS
from hwsim.explore.space import parse_space, recipe_of
from hwsim.networks.graph import FloatGraph
from hwsim.program import Node, Program
from hwsim.quantize.adalog import adalog, repq_vit
from hwsim.quantize.calibrate import calibrate
from hwsim.quantize.lowering import lower
from hwsim.quantize.quantizers import parse_quantizer
from hwsim.quantize.quantizers.adalog import AdaLog
from hwsim.quantize.quantizers.uniform import HeadGrid, UniformGrid
from hwsim.quantize.recipe import Lowering, Recipe, fq_vit

Parameters = dict[str, np.ndarray]
RNG = np.random.default_rng(21)


def edited(graph: FloatGraph, name: str, edit: Callable[[Parameters], None]) -> FloatGraph:
    """The network with other parameters of one node."""
    nodes = []
    for node in graph.nodes:
        if node.name == name:
            parameters = {key: array.copy() for key, array in node.parameters.items()}
            edit(parameters)
            node = dataclasses.replace(node, parameters=parameters)
        nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(nodes))


def row_of(factor: float) -> Callable[[Parameters], None]:
    """Weights of output channel 3 times a factor, its bias 0.5."""

    def edit(parameters: Parameters) -> None:
        parameters["weight"][3] *= factor
        parameters["bias"][3] = 0.5

    return edit


def no_gamma(parameters: Parameters) -> None:
    parameters["weight"][:] = 0


RECIPES = {
    "repq-vit": repq_vit("6/6/6"),
    "adalog": quick(adalog("6/6/6")),
    "adalog log-sqrt2": quick(adalog("6/6/6", attention="log-sqrt2", gelu="log-sqrt2")),
    "adalog twin": quick(adalog("6/6/6", gelu="twin")),
}


@pytest.mark.parametrize("factor", [0, 1e-6])
@pytest.mark.parametrize("name", RECIPES)
def test_a_row_of_weights_that_is_dead_or_nearly(
    name: str, factor: float, small_graph: FloatGraph, small_images: np.ndarray
) -> None:
    """Its bias is an integer beyond all widths in units of what it weighs."""
    graph = edited(small_graph, "blocks.0.mlp.fc2", row_of(factor))
    calibration = calibrate(graph, small_images[:8], RECIPES[name])
    program = lower(calibration)
    fast, slow = (
        Executor(program, backend).run(small_images[:2], keep=["blocks.0.mlp.fc2"])[1]["blocks.0.mlp.fc2"]
        for backend in ("numba", "reference")
    )
    assert np.array_equal(fast, slow)
    scale, zero_point = (program.header["scales"]["blocks.0.mlp.fc2"][key] for key in ("scale", "zero_point"))
    assert np.abs(fast[..., 3] - (0.5 / scale + zero_point)).max() <= 1
    assert fast[..., 2].std() > 10  # the others are alive
    result = audit(calibration, program, small_images[:8])
    assert max(point.local.mean for point in result.points) < 0.05
    assert result.same_prediction > 0.8


@pytest.mark.parametrize("norm", ["blocks.0.norm1", "blocks.1.norm2"])
@pytest.mark.parametrize("name", ["repq-vit", "adalog"])
def test_a_layernorm_without_any_gamma(name: str, norm: str, small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """Its output is beta, which the reparameterization moves into the bias of a layer without weights."""
    calibration = calibrate(edited(small_graph, norm, no_gamma), small_images[:8], RECIPES[name])
    layer = "blocks.0.attn.qkv" if norm.endswith("norm1") else "blocks.1.mlp.fc1"
    assert not calibration.graph[layer].parameters["weight"].any()
    program = lower(calibration)
    for point in audit(calibration, program, small_images[:4]).points:
        assert point.local.largest <= 1, point
    fast, slow = (Executor(program, backend).run(small_images[:2])[0] for backend in ("numba", "reference"))
    assert np.array_equal(fast, slow)


def test_what_is_still_too_wide_names_its_layer(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    def huge(parameters: Parameters) -> None:
        row_of(1e-6)(parameters)
        parameters["bias"][3] = 30

    recipe = quick(adalog("6/6/6", lowering=Lowering(multiplier_bits=31)))
    calibration = calibrate(edited(small_graph, "blocks.0.mlp.fc2", huge), small_images[:4], recipe)
    with pytest.raises(HwsimError, match=r"^blocks\.0\.mlp\.fc2: requantize spec: input of .* exceeds 62 bits"):
        lower(calibration)


def test_weights_of_zero_are_told_of_where_the_checkpoint_has_them(
    small_graph: FloatGraph, small_images: np.ndarray
) -> None:
    graph = edited(small_graph, "blocks.0.attn.qkv", no_gamma)
    with pytest.raises(HwsimError, match=r"small: all weights of blocks\.0\.attn\.qkv are zero.*check the checkpoint"):
        calibrate(graph, small_images[:4], RECIPES["adalog"])


# --- order of rounding ---


def test_ties_are_rounded_before_the_zero_point() -> None:
    """Published: half to even, then the zero point. FQ-ViT adds an odd one first, and goes the other way."""
    halves = torch.arange(-9, 10, 2) / 2  # odd halves: every one is a tie
    even = [-4, -4, -2, -2, 0, 0, 2, 2, 4, 4]
    for zero in (7, 8):
        published = [code + zero for code in even]
        other = published if zero == 8 else [2, 4, 4, 6, 6, 8, 8, 10, 10, 12]
        for x, scale in ((halves, 1.0), (halves / 4, 0.25)):
            assert UniformGrid(scale, zero, 4, round_first=True).codes(x).tolist() == published
            assert UniformGrid(scale, zero, 4).codes(x).tolist() == other
            heads = HeadGrid(np.array([scale, 2 * scale], np.float32), np.array([zero, zero]), 4, round_first=True)
            both = torch.stack([x, 2 * x])[:, None]
            assert heads.codes(both).tolist() == [[published], [published]]


@pytest.mark.parametrize("name", ["repq-vit", "adalog", "adalog brecq-lsq"])
def test_recipes_round_as_published(name: str, small_graph: FloatGraph, small_images: np.ndarray) -> None:
    recipes = {**RECIPES, "adalog brecq-lsq": quick(adalog("4/4/4", reconstruct="brecq-lsq", iterations=2))}
    calibration = calibrate(small_graph, small_images[:4], recipes[name])
    grids = [grid for grid in calibration.grids.values() if isinstance(grid, UniformGrid | HeadGrid)]
    assert len(grids) > 10 and all(grid.round_first for grid in grids)
    scales = lower(calibration).header["scales"]
    assert scales["blocks.0.norm1"]["round_first"] is True
    # What carries floats has no published order.
    assert "round_first" not in scales["blocks.0.mlp.fc2"]


# --- points that a quantizer does not take ---


@pytest.mark.parametrize(
    ("recipe", "role", "point", "text"),
    [
        # An operand of a product that a search of pairs finds, a point beside its products, and the two without it.
        (quick(adalog("4/4/4")), "context", "blocks.0.attn.context", "shift-adalog:4"),
        (quick(adalog("4/4/4")), "logits", "head", "shift-adalog:4"),
        (repq_vit("4/4/4"), "context", "blocks.0.attn.context", "shift-log-sqrt2:4"),
        (fq_vit("8/8/8", calibration_batch=2), "context", "blocks.0.attn.context", "shift-log-sqrt2:4"),
    ],
)
def test_an_activation_below_the_shift_is_refused(
    recipe: Recipe, role: str, point: str, text: str, small_graph: FloatGraph, small_images: np.ndarray
) -> None:
    recipe = dataclasses.replace(recipe, points={**recipe.points, role: parse_quantizer(text)})
    name = re.escape(text.partition(":")[0])
    with pytest.raises(HwsimError, match=rf"^{re.escape(point)}: {name} codes take values of at least -0\.1700"):
        calibrate(small_graph, small_images[:4], recipe)


# --- rows of attention that vanish ---


def half_of_the_rows_even(parameters: Parameters) -> None:
    """Queries of head 0 are zero, so that its 17 probabilities are even; those of head 1 are far apart."""
    for array in parameters.values():
        array[:12] = 0
        array[12:24] *= 30


# Two bits of base 2**(10/37) end at 2**-0.95, of base sqrt(2) at 2**-1.75 of the largest probability.
TWO_BITS = {
    "fq-vit": dataclasses.replace(
        base := fq_vit("8/8/2", attention="adalog", calibration_batch=2),
        points={**base.points, "attention": AdaLog(2, 10)},
    ),
    "repq-vit": repq_vit("8/8/2"),
    "adalog": dataclasses.replace(base := quick(adalog("8/8/2")), points={**base.points, "attention": AdaLog(2, 10)}),
    "adalog brecq": quick(adalog("8/8/2", attention="log-sqrt2", reconstruct="brecq", iterations=1)),
    "adalog brecq-lsq": quick(adalog("8/8/2", attention="log-sqrt2", reconstruct="brecq-lsq", iterations=1)),
}


@pytest.mark.parametrize("name", TWO_BITS)
def test_rows_of_attention_that_vanish_are_told_once(
    name: str, small_graph: FloatGraph, small_images: np.ndarray
) -> None:
    graph = edited(small_graph, "blocks.0.attn.qkv", half_of_the_rows_even)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        calibrate(graph, small_images[:4], TWO_BITS[name])
    said = [str(warning.message) for warning in caught if "zero symbols alone" in str(warning.message)]
    (first,) = (text for text in said if text.startswith("blocks.0.attn.softmax: "))
    share = float(first.split()[1])
    assert 50 <= share < 75
    assert first.endswith("% of the rows of attention have zero symbols alone; use more attention bits")


def test_rows_are_judged_by_the_scale_that_was_learned(
    small_graph: FloatGraph, small_images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        "hwsim.quantize.reconstruct.learn.warn_of_lost_rows", lambda found, images, device: seen.append(found)
    )
    recipe = quick(adalog("4/4/4", reconstruct="brecq-lsq", iterations=3))
    found = calibrate(small_graph, small_images[:4], recipe)
    (judged,) = seen
    assert judged.grids == found.grids


@pytest.mark.parametrize("kind", ["adalog_matmul", "log_sqrt2_matmul"])
def test_a_row_of_zero_symbols_gives_the_zero_point(kind: str) -> None:
    """A sum of 0 whatever the values, so the code is that of 0; one other code gives what it weighs."""
    requantize = RequantizeSpec(
        input=IntFormat(40, signed=True), output_bits=8, multiplier_bits=16, shift_bits=6, channels=2
    )
    fields = {"code_bits": 2, "value_bits": 4, "row_length": 9, "guard_bits": 6, "heads": 2, "requantize": requantize}
    constants = {"zero_v": np.array([3, 14]), "zero_point": np.array(77)}
    # 1/64 of the sums in all, of head 1 twice that.
    constants |= {"multiplier": np.array([1 << 14, 1 << 15]), "shift": np.array([20, 20])}
    spec: AdaLogMatmulSpec | LogSqrt2MatmulSpec
    if kind == "adalog_matmul":
        shift, mantissa = adalog_tables(2, 37)
        spec = AdaLogMatmulSpec(largest_shift=20, **fields)
        constants |= {"shift_table": shift, "mantissa_table": mantissa}
        weighs = 6 >> 1  # code 1 of base 2, in units of 1/6
    else:
        spec = LogSqrt2MatmulSpec(**fields)
        constants["multiplier_odd"] = constants["multiplier"]
        weighs = 1  # code 1 is odd: 1 times the multiplier of odd codes
    constants = spec.check_constants(constants)
    values = RNG.integers(0, 16, (2, 9, 5))
    codes = np.full((2, 3, 9), spec.zero_symbol)
    codes[:, 2, 4] = 1
    for found in (spec.compute(constants, codes, values), KERNELS[kind](spec, constants)(codes, values)):
        assert found.shape == (2, 3, 5)
        assert (found[:, :2] == 77).all()
        for head, zero in enumerate((3, 14)):
            assert found[head, 2].tolist() == [77 + (1 + head) * weighs * (v - zero) for v in values[head, 4].tolist()]


# --- guard bits ---


def summed(kind: str, node: Node, codes: list[int], out: int, guard: int) -> Fraction:
    """Sum of products of one output of a linear layer on logarithmic codes and its bias, times the multiplier."""
    weight = (node.constants["weight"].astype(int) - node.constants["zero_weight"].astype(int)[:, None])[out].tolist()
    total = [int(node.constants["bias"][out]), 0]
    for code, value in zip(codes, weight, strict=True):
        if kind == "adalog_linear":
            if code < len(node.constants["shift_table"]):
                shift, mantissa = (int(node.constants[f"{name}_table"][code]) for name in ("shift", "mantissa"))
                total[0] += mantissa * value * 2**guard // 2**shift
        elif code < node.spec.zero_symbol:
            total[code % 2] += value * 2**guard // 2 ** (code // 2)
    factors = [int(node.constants[name][out]) for name in ("multiplier", "multiplier_odd") if name in node.constants]
    return Fraction(sum(a * b for a, b in zip(total, factors, strict=False)), 2 ** int(node.constants["shift"][out]))


@pytest.mark.parametrize("kind", ["adalog_linear", "log_sqrt2_linear"])
def test_fewer_guard_bits_cut_the_products(kind: str, small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """By plain integers, which floor; in both executors."""
    codes = "adalog" if kind == "adalog_linear" else "log-sqrt2"
    calibration = calibrate(small_graph, small_images[:8], quick(adalog("4/4/4", attention=codes, gelu=codes)))
    found = {}
    for guard_bits in (None, 1):
        recipe = dataclasses.replace(calibration.recipe, lowering=Lowering(guard_bits=guard_bits))
        program = lower(dataclasses.replace(calibration, recipe=recipe))
        fast, slow = (
            Executor(program, backend).run(small_images[:2], keep=None)[1] for backend in ("numba", "reference")
        )
        for name, array in slow.items():
            assert np.array_equal(fast[name], array), name
        found[guard_bits] = program, slow
    program, values = found[1]
    assert program["blocks.1.attn.context"].spec.guard_bits == 1
    assert found[None][0]["blocks.0.mlp.fc2"].spec.guard_bits > 1
    node = program["blocks.0.mlp.fc2"]
    assert node.spec.kind == kind
    rows = values["blocks.0.mlp.gelu"][0][:3].astype(int).tolist()
    limit = 2**node.spec.output.bits - 1
    expected = [
        [
            min(max(round(summed(kind, node, row, out, 1) + int(node.constants["zero_point"])), 0), limit)
            for out in range(24)
        ]
        for row in rows
    ]
    assert values["blocks.0.mlp.fc2"][0][:3].tolist() == expected
    assert not np.array_equal(values["blocks.0.mlp.fc2"], found[None][1]["blocks.0.mlp.fc2"])


def test_guard_bits_are_a_field_of_every_command() -> None:
    assert lowering_values(["guard_bits=3"]) == {"guard_bits": 3}
    space = parse_space(["recipe=adalog", "guard_bits=0..2,9"])
    assert space.values["guard_bits"] == (0, 1, 2, 9)
    assert recipe_of({"recipe": "adalog", "guard_bits": 9}).lowering.guard_bits == 9
    with pytest.raises(HwsimError, match="guard_bits must be an integer between 0 and 40, not 41"):
        Lowering(guard_bits=41)


@pytest.mark.parametrize("codes", ["adalog", "log-sqrt2"])
def test_an_accumulator_too_narrow_for_logarithmic_codes(
    codes: str, small_graph: FloatGraph, small_images: np.ndarray
) -> None:
    """The remedies are those that the unit has, and they help; linear layers on uniform codes wrap."""
    calibration = calibrate(small_graph, small_images[:4], quick(adalog("4/4/4", gelu=codes)))

    def lowered(bits: int, **widths: Any) -> Program:
        widths = Lowering(accumulator_bits=bits, **widths)
        return lower(dataclasses.replace(calibration, recipe=dataclasses.replace(calibration.recipe, lowering=widths)))

    with pytest.raises(HwsimError, match=r"^patch_embed\.proj: .* or set overflow to wrap or saturate$"):
        lowered(7)
    needed = []
    for guard_bits in (3, 0):
        with pytest.raises(HwsimError) as refused:
            lowered(7, overflow="wrap", guard_bits=guard_bits)
        said = re.fullmatch(
            r"blocks\.0\.mlp\.fc2: \w+_linear: the accumulator could overflow: sums reach .*, accumulator_bits is 7; "
            r"use at least (\d+) or fewer guard_bits; this unit neither wraps nor saturates",
            str(refused.value),
        )
        assert said, refused.value
        needed.append(int(said[1]))
    assert needed[1] < needed[0] <= needed[1] + 3
    # The second block may need a bit more.
    program = lowered(needed[1] + 1, overflow="wrap", guard_bits=0)
    assert program["blocks.0.mlp.fc1"].spec.overflow == "wrap"


def test_guard_bits_of_log_sqrt2_end_at_the_limit_of_the_unit(
    small_graph: FloatGraph, small_images: np.ndarray
) -> None:
    """Eight bits would lose nothing with 127, and there is room for 41."""
    recipe = quick(adalog("4/4/8", attention="log-sqrt2", lowering=Lowering(multiplier_bits=8)))
    program = lower(calibrate(small_graph, small_images[:4], recipe))
    assert program["blocks.0.attn.context"].spec.guard_bits == 40
