"""Searches of two parameters: candidates, their cost, and what the settings refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from golden.errors import HwsimError
from hwsim.networks.graph import FloatNode
from hwsim.quantize.adalog import repq_vit
from hwsim.quantize.quantizers.log_sqrt2 import LogSqrt2, LogSqrt2Grid, ShiftLogSqrt2Grid
from hwsim.quantize.quantizers.shift_adalog import ShiftAdaLogGrid
from hwsim.quantize.quantizers.uniform import UniformGrid
from hwsim.quantize.search.output_error import OutputError, some_rows
from hwsim.quantize.search.pairs import ShiftedLogOperand, UniformOperand
from hwsim.quantize.search.percentile import _grid, least_error_range, least_error_weights
from hwsim.quantize.search.progressive import Space, alternating, brute_force, progressive
from hwsim.quantize.search.settings import PairSearch

RNG = np.random.default_rng(11)


def bowl(scale: float, zero: int) -> tuple[object, Space]:
    """A cost whose only minimum is at (scale, zero)."""

    def cost(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return ((first - scale) ** 2 * 50 + (second - zero) ** 2 / 10).double()

    return cost, Space(torch.tensor([0.5]), torch.tensor([2.0]), tuple(range(0, 64, 4)), 0, 63)


def test_refining_both_parameters_finds_what_the_released_search_cannot() -> None:
    cost, space = bowl(1.234, 21)
    settings = {"candidates": 128, "steps": 5}
    both = progressive(cost, space, beam=8, refine_second=True, **settings)  # type: ignore[arg-type]
    assert float(both.second) == 21
    assert float(both.first) == pytest.approx(1.234, abs=2e-3)
    scale_alone = progressive(cost, space, beam=16, refine_second=False, **settings)  # type: ignore[arg-type]
    assert float(scale_alone.second) == 20
    assert both.tried <= 5 * 128


def test_children_lie_on_both_sides_of_their_pair() -> None:
    """Nine of them, the fewest: themselves, and a neighbour on each side in each parameter."""
    seen: list[set[tuple[float, float]]] = []

    def cost(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        seen.append({(round(a, 5), b) for a, b in torch.cat([first, second], dim=1).tolist()})
        return ((first - 1.5).abs() + (second - 8).abs()).double()

    space = Space(torch.tensor([1.0]), torch.tensor([2.0]), (0, 8, 16), 0, 16)
    progressive(cost, space, candidates=9, steps=3, beam=1, refine_second=True)
    assert seen[0] == {(scale, zero) for scale in (1.0, 1.5, 2.0) for zero in (0, 8, 16)}
    # Half of what lay between them, of the scale, of the zero point.
    assert seen[1] == {(scale, zero) for scale in (1.25, 1.5, 1.75) for zero in (4, 8, 12)}
    assert seen[2] == {(scale, zero) for scale in (1.4, 1.5, 1.6) for zero in (6, 8, 10)}


def test_too_few_candidates_for_a_grid_of_both_parameters() -> None:
    with pytest.raises(HwsimError, match=r"fpcs refines both parameters of a pair and needs 9 candidates .*, not 8"):
        PairSearch(candidates=64, beam=4, gelu_beam=8)
    # One step refines nothing, and the others do not refine both.
    assert PairSearch(candidates=16, steps=1).candidates == 16
    assert PairSearch("released", candidates=32, beam=16).beam == 16


def test_brute_force_tries_all_and_alternating_turns() -> None:
    cost, space = bowl(1.25, 21)
    whole = brute_force(cost, space, candidates=31)  # type: ignore[arg-type]
    assert (float(whole.first), float(whole.second)) == (1.25, 21)
    assert whole.tried == 31 * 31
    turns = alternating(cost, space, candidates=64, rounds=2, start=torch.tensor([0.0]))  # type: ignore[arg-type]
    assert float(turns.second) == 21
    assert turns.tried == 2 * (64 + 64)


@pytest.mark.parametrize("group", ["tensor", "head", "row"])
@pytest.mark.parametrize("columns", [3, 20])
def test_output_error_is_the_squared_error_of_the_product(group: str, columns: int) -> None:
    """Its differences between candidates, against the product itself; with few columns and with many."""
    rows = torch.from_numpy(RNG.normal(size=(2, 3, 5, 7)))
    other = torch.from_numpy(RNG.normal(size=(2, 3, 7, columns)))
    rounded = (other * 2).round() / 2
    error = OutputError(rows, group, rounded, rows @ (rounded - other))
    axes = {"tensor": (0, 1, 2, 3), "head": (0, 2, 3), "row": (0, 1, 3)}[group]
    costs, exact = [], []
    for step in (0.2, 0.5):
        quantized = (rows / step).round() * step
        costs.append(error(quantized))
        exact.append((quantized @ rounded - rows @ other).square().sum(dim=axes).reshape(-1))
    torch.testing.assert_close(costs[1] - costs[0], exact[1] - exact[0])


def test_operand_finds_the_best_of_all_pairs() -> None:
    """Brute force over zero points and steps in NumPy gives the same grid."""
    x = RNG.gamma(1.0, 1.0, (1, 1, 40, 8)).astype(np.float32) - 1
    search = PairSearch("brute-force", candidates=16)
    operand = UniformOperand(torch.from_numpy(x), 3, "tensor", search, zero_points=8)
    operand.search(None)
    best = None
    for zero in range(8):
        for scale in operand.space.firsts(16)[:, 0].numpy():
            values = (np.clip(np.rint(x / scale) + zero, 0, 7) - zero) * scale
            cost = float(((values - x).astype(np.float64) ** 2).sum())
            if best is None or cost < best[0]:
                best = cost, float(scale), zero
    assert best is not None
    grid = operand.grid()
    assert isinstance(grid, UniformGrid)
    assert (grid.scale, grid.zero_point) == best[1:]


def test_some_rows_are_spread_evenly() -> None:
    assert some_rows(torch.zeros(2, 3, 10, 4), 0).tolist() == list(range(10))
    assert some_rows(torch.zeros(2, 3, 10, 4), 24 * 5).tolist() == [0, 2, 4, 6, 8]
    assert some_rows(torch.zeros(2, 3, 10, 4), 1).tolist() == [0]


def test_weights_of_one_sign_keep_their_values() -> None:
    # Four inputs, as of 2 x 2 pixels: many a channel has one sign.
    weight = np.array([[0.5, 0.6, 0.75, 1.0], [-2.0, -1.5, -1.75, -1.9], [-1.0, 0.25, 0.5, 2.0]], np.float32)
    node = FloatNode("patch", "linear", "patch", parameters={"weight": weight, "bias": np.zeros(3, np.float32)})
    quantized = least_error_weights(repq_vit("8/8/8"), node)
    steps = np.array([1.0, 2.0, 3.0]) / 255
    # Half a step, and what the smallest percentile cuts off.
    assert (np.abs(quantized.values() - weight) <= 0.51 * steps[:, None] + 0.003).all()


def test_percentiles_of_least_error_are_those_of_numpy() -> None:
    x = RNG.normal(size=(3, 5000)).astype(np.float32)
    x[1, :3] = 50
    scale, zero_point = (found.numpy() for found in least_error_range(torch.from_numpy(x), 4))
    for row in range(3):
        tried = []
        for share in (0.999, 0.9999, 0.99999):
            low, high = np.quantile(x[row], 1 - share), np.quantile(x[row], share)
            step = np.float32((high - low) / 15)
            zero = np.rint(-low / step)
            values = (np.clip(np.rint(x[row] / step) + zero, 0, 15) - zero) * step
            tried.append((((values - x[row]) ** 2).mean(), step, zero))
        _, step, zero = min(tried)
        assert scale[row] == pytest.approx(step, rel=1e-4)
        assert zero_point[row] == zero


def test_ranges_of_one_hot_attention() -> None:
    """Percentiles that are 0 make no range."""
    # Of 1025 tokens less than a thousandth of the probabilities are 1, and more than a ten-thousandth.
    attention = torch.eye(1025)[torch.from_numpy(RNG.permutation(1025))][None, None]
    assert np.quantile(attention.numpy(), 0.999) == 0
    assert _grid(LogSqrt2(4), attention, "attention") == LogSqrt2Grid(4, 1.0)
    # All three are 0: what is left is the largest value.
    attention = torch.zeros(1, 1, 400, 400)
    attention[0, 0, 17, 5] = 0.75
    assert np.quantile(attention.numpy(), 0.99999) == 0
    assert _grid(LogSqrt2(4), attention, "attention") == LogSqrt2Grid(4, 0.75)
    assert _grid(LogSqrt2(4), torch.zeros(1, 1, 3, 3), "attention") == LogSqrt2Grid(4, 1.0)


@pytest.mark.parametrize(("field", "value"), [("method", "beam"), ("candidates", 0), ("steps", 0), ("values", -1)])
def test_settings_are_checked(field: str, value: object) -> None:
    with pytest.raises(HwsimError, match="search"):
        PairSearch(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("group", "columns"),
    [*((group, columns) for group in ("tensor", "head", "row") for columns in (0, 3, 9)), ("element", 0)],
)
def test_candidates_side_by_side_cost_what_they_cost_one_by_one(group: str, columns: int) -> None:
    """What an accelerator computes at once: the same costs up to the order of sums."""
    rows = torch.from_numpy(RNG.normal(size=(2, 3, 5, 6)).astype(np.float32))
    factor = torch.from_numpy(RNG.normal(size=(2, 3, 6, columns)).astype(np.float32)) if columns else None
    error = OutputError(rows, group, factor, None if factor is None else rows @ factor)
    operand = UniformOperand(rows, 3, group, PairSearch(), zero_points=4)
    groups = {"tensor": 1, "head": 3, "row": 5, "element": 6}[group]
    scales = torch.from_numpy(RNG.uniform(0.1, 1, (7, groups)).astype(np.float32))
    zeros = torch.from_numpy(RNG.integers(0, 8, (7, groups)).astype(np.float32))
    quantized = operand._quantize(rows, error.parameter(scales), error.parameter(zeros))
    assert quantized.shape == (7, *rows.shape)
    found = error(quantized)
    expected = error.costs(lambda scale, zero: operand._quantize(rows, scale, zero), scales, zeros)
    assert found.shape == expected.shape == (7, groups)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", [ShiftAdaLogGrid(4, 20, 1.5), ShiftLogSqrt2Grid(3, 1.5)], ids=repr)
def test_shifted_codes_side_by_side(grid: ShiftAdaLogGrid | ShiftLogSqrt2Grid) -> None:
    rows = torch.from_numpy(RNG.uniform(-0.16, 3, (1, 1, 30, 8)).astype(np.float32))
    operand = ShiftedLogOperand(rows, grid, 0, PairSearch())
    quantize = operand._quantizer(rows)
    error = OutputError(rows, "tensor")
    scales = torch.linspace(0.5, 3, 6)[:, None]
    q = torch.tensor([10.0, 37, 20, 20, 90, 137])[:, None]
    whole = quantize(error.parameter(scales), error.parameter(q))
    for number, (scale, base) in enumerate(zip(scales, q, strict=True)):
        one = quantize(error.parameter(scale), error.parameter(base))
        assert torch.allclose(whole[number], one, atol=1e-6), number
