"""Swin and the distilled DeiT as programs: agreement with the fake-quantized network, masks, and both executors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conftest import quantize_small, small_distilled, small_swin
from golden.errors import HwsimError
from golden.windows import ShiftMaskSpec, shift_mask
from hwsim.audit import audit
from hwsim.execute import Executor
from hwsim.networks.load import float_graph
from hwsim.program import Program, load_program, save_program
from hwsim.quantize.calibrate import Calibration, calibrate
from hwsim.quantize.lowering import lower
from hwsim.quantize.quantizers.uniform import Uniform
from hwsim.quantize.recipe import Recipe
from hwsim.quantize.weights import SymmetricWeights

pytest.importorskip("timm")
MEAN_STD: dict[str, tuple[float, ...]] = {"mean": (0.52, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
CASES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "swin 8/8/4": (small_swin, "8/8/4", {}),
    "swin 8/8/8": (small_swin, "8/8/8", {}),
    "swin 8/8/4 plain": (small_swin, "8/8/4", {"pts": False}),
    "swin 8/8/4 adalog": (small_swin, "8/8/4", {"attention": "adalog"}),
    "distilled 8/8/4": (small_distilled, "8/8/4", {}),
}
MASKED = "layers.0.blocks.1.attn.masked"


@pytest.fixture(scope="module")
def swin(small_images: np.ndarray) -> tuple[Calibration, Program]:
    return quantize_small(float_graph(small_swin(), "swin", **MEAN_STD), small_images, "8/8/4")


def both_executors_agree(program: Program, images: np.ndarray) -> dict[str, np.ndarray]:
    fast = Executor(program).run(images, keep=None)[1]
    for name, array in Executor(program, "reference").run(images, keep=None)[1].items():
        assert np.array_equal(fast[name], array), name
    return fast


@pytest.mark.parametrize("case", CASES)
def test_integer_follows_fake_quant(case: str, small_images: np.ndarray, tmp_path: Any) -> None:
    make, bits, options = CASES[case]
    calibration, program = quantize_small(float_graph(make(), case, **MEAN_STD), small_images, bits, **options)
    points = audit(calibration, program, small_images).points
    assert {point.point for point in points} == set(calibration.grids)
    for point in points:
        # The limits of tests/test_lowering.py, which says where they come from.
        limit = {"layernorm": 3, "requantize": 16, "adalog_quantize": 3}.get(point.unit, 1)
        assert point.local.largest <= limit, point
        assert point.local.mean < 0.5, point
        if point.unit in ("lookup", "linear", "matmul", "add", "window_bias", "token_mean", "constant"):
            assert point.local.share_equal > 0.98, point
    both_executors_agree(program, small_images[:2])
    save_program(program, tmp_path / "program")
    again = load_program(tmp_path / "program")
    assert np.array_equal(Executor(again).predict(small_images), Executor(program).predict(small_images))


def test_what_is_masked_has_no_weight_and_the_rest_has(
    swin: tuple[Calibration, Program], small_images: np.ndarray
) -> None:
    codes = both_executors_agree(swin[1], small_images[:4])
    attention = codes["layers.0.blocks.1.attn.softmax"]
    masked = np.broadcast_to(shift_mask(8, 8, 4, 2)[:, None], attention.shape)
    assert (attention[masked] == 16).all()
    assert (attention[~masked] < 16).mean() > 0.9


def test_a_wrong_offset_is_seen(swin: tuple[Calibration, Program], small_images: np.ndarray) -> None:
    """Without the offset masked scores count, and the audit shows it at the softmax behind."""
    calibration, program = swin
    nodes = [
        type(node)(
            node.name, node.spec, node.inputs, {"offset": np.array(0)} if node.name == MASKED else node.constants
        )
        for node in program.nodes
    ]
    points = audit(calibration, Program(tuple(nodes), program.image_size, program.header), small_images).points
    worst = max(points, key=lambda point: point.local.mean)
    assert worst.point == "layers.0.blocks.1.attn.softmax"
    assert worst.local.largest > 3


def test_points_left_in_float_are_carried(small_images: np.ndarray) -> None:
    """A recipe of operands only: bias, mask and everything else run in wide codes, scores leave room for the mask."""
    heads = Uniform(8, symmetric=True, heads=True)
    points = {"query": heads, "key": heads, "value": heads, "norm": Uniform(8), "attention": Uniform(8)}
    recipe = Recipe("operands", SymmetricWeights(8), points, calibration_batch=8)
    calibration = calibrate(float_graph(small_swin(), "swin", **MEAN_STD), small_images, recipe)
    program = lower(calibration)
    spec = program[MASKED].spec
    assert isinstance(spec, ShiftMaskSpec)
    assert spec.output_bits <= 14
    assert program.header["scales"]["layers.0.blocks.1.attn.biased"]["scale"] < 0.01
    codes = both_executors_agree(program, small_images[:2])
    attention = codes["layers.0.blocks.1.attn.softmax.probability"]
    assert (attention[np.broadcast_to(shift_mask(8, 8, 4, 2)[:, None], attention.shape)] == 0).all()
    for point in audit(calibration, program, small_images).points:
        assert point.local.mean < 0.5, point


def test_scores_too_fine_for_a_mask_are_refused(small_images: np.ndarray) -> None:
    """Scores that hardly differ: no room in 14 bits for what lies 16 octaves below."""
    import torch

    model = small_swin()
    with torch.no_grad():
        model.layers[0].blocks[1].attn.qkv.weight.mul_(0.002)
        model.layers[0].blocks[1].attn.qkv.bias.mul_(0.002)
        model.layers[0].blocks[1].attn.relative_position_bias_table.mul_(0.002)
    with pytest.raises(HwsimError, match=rf"{MASKED}: scores of 8 bits at a scale of .* a masked score needs 16; take"):
        quantize_small(float_graph(model, "fine", **MEAN_STD), small_images, "8/8/4")
