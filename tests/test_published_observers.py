"""`golden.published`: power-of-two factors and observers, against torch in float64 and exact fractions.

torch in float64 is how the released code is run for conformance; it is written here from the formulas.
"""

from fractions import Fraction

import numpy as np
import pytest
import torch

from golden import published
from golden.published.observers import least_error, quantile, squared_errors


def torch_parameters(low, high):
    scale = ((high - low) / 255.0).clamp(min=torch.finfo(torch.float32).eps)
    return scale, (0 - torch.round(low / scale)).clamp(0, 255)


def torch_mse(x, scale, zero_point):
    quantized = torch.round(x / scale + zero_point).clamp(0, 255)
    return ((x - (quantized - zero_point) * scale) ** 2).mean()


def torch_pts_factors(x, factors=4):
    x = torch.tensor(x, dtype=torch.float64)
    scale, zero_point = torch_parameters(x.min(), x.max())
    steps = [scale / 8 * 2**a for a in range(factors)]
    best = [int(torch.stack([torch_mse(column, s, zero_point) for s in steps]).argmin()) for column in x.unbind(-1)]
    return torch.stack([steps[a] for a in best]).numpy(), int(zero_point)


def torch_observe(name, batches, sigma=0.01, steps=90):
    batches = [torch.tensor(b, dtype=torch.float64).reshape(-1) for b in batches]
    if name == "percentile":
        ends = [(torch.quantile(b, 1.0 - 0.99999), torch.quantile(b, 0.99999)) for b in batches]
    else:
        ends = [(b.min(), b.max()) for b in batches]
    low, high = ends[0]
    for new_low, new_high in ends[1:]:
        if name in ("ema", "percentile"):
            low, high = low + sigma * (new_low - low), high + sigma * (new_high - high)
        else:
            low, high = torch.minimum(low, new_low), torch.maximum(high, new_high)
    found = torch_parameters(low, high)
    if name == "omse":
        grid = [torch_parameters(low * (1.0 - i * 0.01), high * (1.0 - i * 0.01)) for i in range(steps)]
        found = min(grid, key=lambda parameters: torch_mse(batches[-1], *parameters).item())
    return found[0].item(), int(found[1])


def activations(rng, shape, offset=0.0):
    spread = 2.0 ** rng.uniform(-4, 0, shape[-1])
    return ((rng.standard_normal(shape) + offset) * spread).astype(np.float32)


def test_pts_equals_float64():
    rng = np.random.default_rng(5)
    seen = set()
    for offset in (0, 0, 0.5, -3, 4, 8):
        x = activations(rng, (4, 17, 48), offset)
        scale, zero_point = published.pts_factors(x)
        expected, expected_zero_point = torch_pts_factors(x)
        assert np.array_equal(scale, expected)
        assert zero_point == expected_zero_point
        seen |= set((scale / scale.min()).tolist())
        assert not np.array_equal(scale, torch_pts_factors(x, factors=3)[0])
    assert seen == {1, 2, 4, 8}


def test_pts_known_factors():
    """Steps 1/8, 1/4, 1/2, 1 and zero point 128, so the windows are -16..15.875 and its doubles."""
    eighths, whole = np.arange(-120, 121) / 8, np.arange(-120, 121) // 8
    halves, wide, quarters = np.arange(-120, 121) / 2, np.linspace(-128, 127, 241).round(), np.arange(-120, 121) / 4
    x = np.stack([eighths, whole, halves, wide, quarters, np.zeros(241)], axis=-1).astype(np.float32)
    scale, zero_point = published.pts_factors(x)
    assert scale.tolist() == [0.125, 0.125, 0.5, 1, 0.25, 0.125]
    assert zero_point == 128
    constant, zero_point = published.pts_factors(np.zeros((3, 2), np.float32))
    assert constant.tolist() == [2.0**-26] * 2
    assert zero_point == 0


def test_least_error_equals_fractions():
    rng = np.random.default_rng(6)
    for _ in range(200):
        x = rng.integers(-8, 9, 6) / 4.0
        candidates = [(float(s), int(z)) for s, z in zip(rng.integers(1, 9, 5) / 8, rng.integers(0, 9, 5), strict=True)]
        sums = [sum(map(Fraction, squared_errors(x, candidate).tolist())) for candidate in candidates]
        assert least_error(x, candidates) == sums.index(min(sums))
    # 2**60 + 1/4 against 2**60, one number in float64.
    x, candidates = np.array([-(2.0**30), 0.5]), [(1.0, 0), (0.5, 0)]
    assert squared_errors(x, candidates[0]).sum() == squared_errors(x, candidates[1]).sum()
    assert least_error(x, candidates) == 1
    assert least_error(x, candidates[:1] * 2) == 0
    # 3 * 81 against 144 above 2**60: added one by one in float64, each 81 is lost and 144 counts as 256.
    x, candidates = np.array([-(2.0**30), 264, 264, 264, 12]), [(1.0, 0), (33.0, 0)]
    assert squared_errors(x, candidates[0]).sum() < squared_errors(x, candidates[1]).sum()
    assert least_error(x, candidates) == 1


@pytest.mark.parametrize("name", ["minmax", "ema", "percentile", "omse"])
def test_observe_equals_float64(name):
    rng = np.random.default_rng(7)
    shapes = [(3, 50, 16)] * 3 + [(700,), (2, 9), (1,)]
    for offset in (0, 1, -2, 6, -6):
        for count in (1, 2, 5):
            batches = [activations(rng, shapes[(count + i) % 6], offset) * (1 + i) for i in range(count)]
            scale, zero_point = published.observe(name, batches)
            expected, expected_zero_point = torch_observe(name, batches)
            # torch's quantile rounds once or twice, by whether the processor has fused multiply-add.
            assert abs(scale - expected) <= (4 * np.spacing(expected) if name == "percentile" else 0)
            assert zero_point == expected_zero_point
            assert type(scale) is float
            assert type(zero_point) is int


@pytest.mark.parametrize(("name", "corrupted"), [("ema", {"sigma": 0.02}), ("omse", {"steps": 5})])
def test_observe_comparison_sees_a_changed_constant(name, corrupted):
    rng = np.random.default_rng(8)
    batches = [activations(rng, (4000,)) for _ in range(3)]
    assert published.observe(name, batches) == torch_observe(name, batches)
    assert published.observe(name, batches) != torch_observe(name, batches, **corrupted)


def test_observe_known_ranges():
    def minmax(*values):
        return published.observe("minmax", [np.array(v, np.float32) for v in values])

    assert minmax([0, 255]) == (1, 0)
    assert minmax([-127], [128, 5]) == (1, 127)
    assert minmax([10, 265]) == (1, 0)
    assert minmax([-300, -45]) == (1, 255)
    assert minmax([-2.5, 252.5]) == (1, 2)
    assert minmax([-3.5, 251.5]) == (1, 4)
    assert minmax([0, 0]) == (2**-23, 0)
    ema = published.observe("ema", [[0, 255], [-100, 511]])
    assert ema == ((255 + 0.01 * 256 + 1.0) / 255, 1)
    # Two outliers among many smaller values: MinMax reaches for them, OMSE gives them up.
    x = np.append(np.linspace(-1, 1, 100_000), [-1.25, 1.25]).astype(np.float32)
    assert published.observe("minmax", [x])[0] == 2.5 / 255
    assert published.observe("omse", [x])[0] < 2.3 / 255
    # The last batch alone decides, and the smallest range tried is 11 % of the running one.
    assert published.observe("omse", [[-100, 100], x])[0] == 200 * (1.0 - 89 * 0.01) / 255


def test_quantile_equals_fractions():
    rng = np.random.default_rng(9)
    for size in (1, 2, 3, 100, 4097):
        values = rng.standard_normal(size).astype(np.float32).astype(np.float64)
        for fraction in (1.0 - 0.99999, 0.99999, 0.3, 0.5, 0.0, 1.0):
            rank = fraction * (size - 1)
            ordered = [Fraction(v) for v in sorted(values.tolist())] * 2
            low, high = ordered[int(rank)], ordered[int(rank) + (rank > int(rank))]
            assert quantile(values, fraction) == float(low + (high - low) * (Fraction(rank) - int(rank)))
