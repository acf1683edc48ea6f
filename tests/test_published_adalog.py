"""`golden.published`: AdaLog, against published vectors, torch in float64 and decimals of 60 digits.

torch in float64 is how the released code is run for conformance; it is written here from the formulas.
"""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch

from golden import published


def fp32(value):
    return float(np.float32(value))


def mismatches(expected, got):
    """Number of elements that differ; the one comparison of this file."""
    expected, got = np.asarray(expected), np.asarray(got)
    assert expected.shape == got.shape
    return int((expected != got).sum())


def half_even(value: Decimal) -> int:
    return int(value.to_integral_value(rounding="ROUND_HALF_EVEN"))


def torch_adalog_quantize(x, bits, q, scale=1.0, r=37.0):
    ratio = (torch.tensor(x, dtype=torch.float64) / scale).clamp(1e-15, 1.0)
    u = torch.round(-torch.log2(ratio) * r / q)
    return torch.where(u < 2**bits, u, -1.0).numpy().astype(np.int64)


def test_adalog_published_tables():
    T1, T2 = published.adalog_tables(4, 20)
    assert T1.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 7, 8]
    assert T2.tolist() == [30, 21, 28, 19, 27, 18, 25, 17, 24, 16, 23, 16, 21, 29, 20, 28]
    T1, T2 = published.adalog_tables(4, 37)
    assert T1.tolist() == list(range(16))
    assert T2.tolist() == [30] * 16
    largest = {(bits, q): int(published.adalog_tables(bits, q)[0][-1]) for bits in (3, 4, 6, 8) for q in (10, 137)}
    assert largest == {(3, 10): 1, (4, 10): 4, (6, 10): 17, (8, 10): 68} | {
        (3, 137): 25,
        (4, 137): 55,
        (6, 137): 233,
        (8, 137): 944,
    }


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_adalog_tables_equal_decimals_and_decode_monotonically(bits):
    with localcontext() as context:
        context.prec = 60
        powers = [half_even(Decimal(2) ** (Decimal(-u) / 37) * (2 ** (bits + 1) - 2)) for u in range(37)]
    for q in range(1, 138):
        T1, T2 = published.adalog_tables(bits, q)
        assert T1.tolist() == [q * code // 37 for code in range(2**bits)]
        assert T2.tolist() == [powers[q * code % 37] for code in range(2**bits)]
        if q >= 10:
            assert (np.diff(published.adalog_dequantize(np.arange(2**bits), bits, q)) <= 0).all()


def adalog_vectors():
    rng = np.random.default_rng(10)
    for bits in (3, 4, 6, 8):
        for q in (10, 11, 20, 37, 50, 74, 111, 137):
            scale = fp32(rng.uniform(0.01, 4))
            x = np.concatenate([rng.uniform(-0.1, 1.2, 400), 2.0 ** rng.uniform(-50, 0.5, 900), [0, 1]]) * scale
            yield x.astype(np.float32), bits, q, scale
            yield 2.0 ** -np.arange(56).astype(np.float32), bits, q, 1.0  # holds every tie


def test_adalog_quantize_equals_float64():
    count = 0
    for vector in adalog_vectors():
        assert mismatches(torch_adalog_quantize(*vector), published.adalog_quantize(*vector)) == 0
        count += vector[0].size
    assert count > 40_000


def test_adalog_comparison_sees_a_changed_constant():
    assert sum(mismatches(torch_adalog_quantize(*v, r=36.0), published.adalog_quantize(*v)) for v in adalog_vectors())


@pytest.mark.parametrize(("bits", "q"), [(4, 20), (3, 13), (6, 10), (8, 10), (8, 74), (6, 137), (8, 1)])
def test_adalog_thresholds_are_exact(bits, q):
    """The float64 numbers next to each threshold, judged by logarithms of 60 digits."""
    scale = fp32(0.37)
    thresholds = scale * 2.0 ** (-(np.arange(2**bits) + 0.5) * q / 37)
    thresholds = thresholds[thresholds > 2e-15 * scale]
    x = np.concatenate([thresholds, np.nextafter(thresholds, 0), np.nextafter(thresholds, 1)])
    expected = []
    with localcontext() as context:
        context.prec = 60
        for value in x.tolist():
            u = half_even(round(-(Decimal(value) / Decimal(scale)).ln() / Decimal(2).ln() * 37 / q, 40))
            expected.append(u if u < 2**bits else -1)
    assert published.adalog_quantize(x, bits, q, scale).tolist() == expected
    assert mismatches(expected, published.adalog_quantize(x * (1 + 1e-12), bits, q, scale)) > 0


def test_adalog_corners():
    # 2**-5 is 18.5 steps of 10/37, a tie, and 2**-15 is 55.5; x above the scale has code 0.
    assert published.adalog_quantize([2.0**-5, 2.0**-15, 1.0, 7.0], 8, 10).tolist() == [18, 56, 0, 0]
    # 0 is taken as 1e-15, 49.83 octaves down: a code of its own where the codes reach so far.
    assert published.adalog_quantize([0.0, -1.0, 1e-15, 1e-30], 8, 37).tolist() == [50] * 4
    assert published.adalog_quantize([[0.0, -1.0]], 4, 37).tolist() == [[-1, -1]]
    assert published.adalog_quantize(0.25, 4, 37).tolist() == 2
    assert published.adalog_quantize(np.zeros((0, 3)), 4, 37).shape == (0, 3)


def test_adalog_dequantize():
    T1, T2 = published.adalog_tables(4, 20)
    scale = fp32(0.3)
    expected = [0.0] + [float(Fraction(int(t2) / 30) / 2 ** int(t1)) * scale for t1, t2 in zip(T1, T2, strict=True)]
    assert published.adalog_dequantize(np.arange(-1, 16), 4, 20, scale).tolist() == expected
    assert published.adalog_dequantize([[0], [-1]], 4, 37).tolist() == [[1.0], [0.0]]
    codes = np.arange(-1, 16)
    assert np.array_equal(published.adalog_quantize(published.adalog_dequantize(codes, 4, 37, 0.5), 4, 37, 0.5), codes)
