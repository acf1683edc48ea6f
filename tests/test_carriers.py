"""Codes of the points that a recipe leaves in float: nothing that another image shows is clipped or distorted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from golden.log_softmax import EXP_LN2, exponential_constants
from golden.softmax import SoftmaxSpec
from hwsim.networks.graph import FloatGraph
from hwsim.quantize.calibrate import Calibration, calibrate
from hwsim.quantize.lowering.carriers import carrier_grids, gelu_input_grid
from hwsim.quantize.ptq4vit import ptq4vit
from hwsim.quantize.quantizers.protocol import Grid
from hwsim.quantize.quantizers.twin import TwinGeluGrid
from hwsim.quantize.quantizers.uniform import UniformGrid, asymmetric_grid
from hwsim.quantize.search.settings import ScaleSearch


@pytest.fixture(scope="module")
def calibration(small_graph: FloatGraph, small_images: np.ndarray) -> Calibration:
    recipe = ptq4vit("6/6/6", metric="mse", rounds=1)
    assert isinstance(recipe.search, ScaleSearch)
    return calibrate(small_graph, small_images[:8], recipe)


def test_carriers_reach_beyond_what_the_calibration_images_showed(calibration: Calibration) -> None:
    """Half the observed extent on each side, but for the input of GELU, whose table saturates by itself."""
    grids = carrier_grids(calibration)
    checked = 0
    for name, (low, high) in calibration.ranges.items():
        grid = grids[name]
        if calibration.graph[name].role == "hidden":
            continue
        assert isinstance(grid, UniformGrid)
        first, last = grid.values(torch.tensor([0.0, float(grid.highest)])).tolist()
        assert first <= low - 0.49 * (high - low), name
        assert last >= high + 0.49 * (high - low), name
        checked += 1
    assert checked > 8


def test_an_octave_of_scores_is_a_whole_number_of_steps(calibration: Calibration) -> None:
    """Then the integer softmax follows the real one; with the range divided evenly it does not."""
    rows = np.random.default_rng(0).normal(0, 2.5, (200, 50))
    real = np.exp(rows - rows.max(axis=1, keepdims=True))
    real /= real.sum(axis=1, keepdims=True)

    def error(grid: UniformGrid) -> float:
        constants = exponential_constants(grid.scale)
        spec = SoftmaxSpec(
            score_bits=grid.bits,
            fraction_bits=16,
            row_length=50,
            polynomial_bits=int(constants["c"]).bit_length(),
            probability_bits=16,
        )
        codes = grid.codes(torch.from_numpy(rows)).numpy().astype(np.int64)
        return float(np.abs(spec.compute(constants, codes) / 2**16 - real).sum(axis=1).mean())

    scores = calibration.graph["blocks.0.attn.scores"]
    assert scores.role == "scores"
    ranges = {scores.name: (-9.8, 10.0)}
    narrow = Calibration(calibration.graph, calibration.recipe, calibration.grids, calibration.weights, ranges, 8)
    grid = carrier_grids(narrow)[scores.name]
    assert isinstance(grid, UniformGrid)
    assert -int(exponential_constants(grid.scale)["x0"]) * grid.scale == pytest.approx(EXP_LN2, rel=1e-5)
    even = UniformGrid(*asymmetric_grid(torch.tensor(-19.7), torch.tensor(19.9), grid.bits), grid.bits)
    assert even.scale < grid.scale < 1.02 * even.scale
    assert error(grid) < 0.005
    assert error(even) > 2 * error(grid)


@pytest.mark.parametrize(
    "output", [UniformGrid(0.0121, 14, 8), TwinGeluGrid(0.021, 0.042, 4), TwinGeluGrid(0.0053, 0.0106, 6)]
)
@pytest.mark.parametrize("high", [0.4, 30.0])
def test_gelu_table_saturates_where_its_output_has_one_code(output: Grid, high: float) -> None:
    """Above the last code of the table's input, and below its first, the code of GELU stays what it is there."""
    grid = gelu_input_grid(-12.0, high, output, 12)
    ends = grid.values(torch.tensor([0.0, float(grid.highest)])).tolist()

    def code(x: float) -> float:
        exact = 0.5 * x * (1 + math.erf(x / math.sqrt(2)))
        return float(output.codes(torch.tensor([exact])))

    assert {code(ends[1] + beyond) for beyond in (0, 0.1, 1, 5)} == {float((1 << output.bits) - 1)}
    assert {code(ends[0] - beyond) for beyond in (0, 0.1, 1, 5)} == {float(output.codes(torch.zeros(1)))}
