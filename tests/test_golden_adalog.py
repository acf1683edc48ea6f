"""AdaLog units of golden against Fractions, Decimals and plain Python integers written independently."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from requantization import clipped, requantizer, scaling

from golden.adalog import (
    AdaLogDecodeSpec,
    AdaLogMatmulSpec,
    AdaLogQuantizeSpec,
    adalog_tables,
    adalog_thresholds,
    lossless_guard_bits,
    probability_scale,
)
from golden.errors import HwsimError


def test_adalog_published_tables():
    shifts, mantissas = adalog_tables(4, 20)
    assert shifts.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 7, 8]
    assert mantissas.tolist() == [30, 21, 28, 19, 27, 18, 25, 17, 24, 16, 23, 16, 21, 29, 20, 28]
    assert [table.tolist() for table in adalog_tables(4, 37)] == [list(range(16)), [30] * 16]


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_adalog_tables_equal_decimals(bits):
    with localcontext() as context:
        context.prec = 40
        ln2 = Decimal(2).ln()
        for q in range(1, 256, 7):
            shifts, mantissas = adalog_tables(bits, q)
            for code in range(2**bits):
                k, u = divmod(q * code, 37)
                exact = (2 ** (bits + 1) - 2) * (-ln2 * u / 37).exp()
                assert (shifts[code], mantissas[code]) == (k, int(exact.to_integral_value()))
                assert 2**bits - 1 <= mantissas[code] <= 2 ** (bits + 1) - 2


@pytest.mark.parametrize(("bits", "q"), [(1, 20), (9, 20), (4, 0), (4, 256)])
def test_adalog_tables_state_their_range(bits, q):
    with pytest.raises(HwsimError, match="must be between"):
        adalog_tables(bits, q)


@pytest.mark.parametrize(("bits", "q"), [(3, 10), (4, 20), (4, 37), (4, 137), (6, 11), (8, 5)])
@pytest.mark.parametrize("scale", [Fraction(4095), Fraction(1000, 7), Fraction(1, 3)])
def test_adalog_thresholds_are_the_logarithm(bits, q, scale):
    spec = AdaLogQuantizeSpec(input_bits=12, code_bits=bits)
    constants = spec.check_constants({"thresholds": adalog_thresholds(bits, q, scale)})
    codes = spec.compute(constants, np.arange(4096, dtype=np.uint16))
    assert codes[0] == 2**bits
    with localcontext() as context:
        context.prec = 60
        ln2 = Decimal(2).ln()
        for x in range(1, 4096, 1 if bits < 6 else 7):
            ratio = Decimal(x) * scale.denominator / scale.numerator
            # ROUND_HALF_EVEN is the context's rounding; ties are irrational here
            code = int((-ratio.ln() / ln2 * 37 / q).to_integral_value())
            assert codes[x] == min(max(code, 0), 2**bits)


def test_adalog_ties_go_to_the_even_code():
    # q = 74: code = rhe(-log2(x / scale) / 2), so x = scale / 2, / 8, / 32 are the ties 0.5, 1.5, 2.5
    spec = AdaLogQuantizeSpec(input_bits=12, code_bits=3)
    constants = spec.check_constants({"thresholds": adalog_thresholds(3, 74, Fraction(2**11))})
    x = np.array([2**11, 2**10, 2**9, 2**8, 2**7, 2**6, 2**4], np.uint16)
    assert spec.compute(constants, x).tolist() == [0, 0, 1, 2, 2, 2, 4]
    assert spec.compute(constants, x - 1).tolist() == [0, 1, 1, 2, 2, 3, 4]


def test_adalog_quantize_saturates_above_and_has_a_zero_below():
    spec = AdaLogQuantizeSpec(input_bits=8, code_bits=2)
    constants = spec.check_constants({"thresholds": np.array([100, 50, 20, 0])})
    assert spec.compute(constants, np.array([255, 101, 100, 51, 50, 21, 20, 1, 0])).tolist() == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
        4,
    ]
    with pytest.raises(HwsimError, match="thresholds must never increase"):
        spec.check_constants({"thresholds": np.array([100, 50, 51, 0])})


def adalog_spec(bits=48, **changes):
    fields = {"code_bits": 3, "value_bits": 6, "row_length": 12, "guard_bits": 0, "largest_shift": 63}
    return AdaLogMatmulSpec(requantize=requantizer(bits, multiplier_bits=12), **(fields | changes))


def adalog_constants(spec, q):
    shifts, mantissas = adalog_tables(spec.code_bits, q)
    return spec.check_constants(
        {"shift_table": shifts, "mantissa_table": mantissas, "zero_v": np.array(29), **scaling(3000, 20, 99)}
    )


@pytest.mark.parametrize("q", [10, 20, 37, 99, 137])
@pytest.mark.parametrize("guard", [None, 0, 3, 6])
@pytest.mark.parametrize("largest_shift", [63, 5])
def test_adalog_matmul_equals_python_integers(q, guard, largest_shift):
    random = np.random.default_rng(q)
    lossless = guard is None
    guard = lossless_guard_bits(3, q) if lossless else guard
    spec = adalog_spec(guard_bits=guard, largest_shift=largest_shift)
    constants = adalog_constants(spec, q)
    shifts, mantissas = adalog_tables(3, q)
    codes, values = random.integers(0, 9, (2, 4, 12)), random.integers(0, 64, (2, 12, 5))
    sums = spec.accumulate(constants, codes.astype(np.uint8), values.astype(np.uint8))
    result = spec.compute(constants, codes.astype(np.uint8), values.astype(np.uint8))
    low, high = spec.bounds(constants)
    for head, row, column in np.ndindex(sums.shape):
        pairs = [
            (int(shifts[c]), int(mantissas[c]) * (int(v) - 29))
            for c, v in zip(codes[head, row], values[head, :, column], strict=True)
            if c < 8 and shifts[c] <= largest_shift
        ]
        exact = sum(Fraction(product * 2**guard, 2**shift) for shift, product in pairs)
        total = sum(product * 2**guard // 2**shift for shift, product in pairs)
        assert int(sums[head, row, column]) == total
        if lossless:
            assert total == exact
        assert low <= total <= high
        assert result[head, row, column] == clipped(Fraction(total * 3000, 2**20) + 99)


def test_adalog_guard_bits_below_lossless_do_cut():
    # The last code of q = 99 has mantissa 8, so three bits fewer still lose nothing and four do.
    lossless = lossless_guard_bits(3, 99)
    shifts, mantissas = adalog_tables(3, 99)
    assert (shifts.max(), mantissas[7]) == (lossless, 8)
    codes, values = np.full((1, 12), 7, np.uint8), np.arange(12, dtype=np.uint8)[:, None]
    sums = []
    for guard in (lossless, lossless - 3, lossless - 4):
        spec = adalog_spec(guard_bits=guard)
        sums.append(Fraction(int(spec.accumulate(adalog_constants(spec, 99), codes, values)[0, 0]), 2**guard))
    assert sums[0] == sums[1] == Fraction(8 * sum(v - 29 for v in range(12)), 2**lossless)
    assert sums[2] < sums[0]


def test_adalog_matmul_proves_its_accumulator():
    spec = adalog_spec(17)
    # mantissas to 14, values to 34 from zero: 14 * 34 * 12 = 5 712 with one for each floor
    adalog_constants(spec, 20)
    with pytest.raises(HwsimError, match=r"adalog_matmul: .* overflow.* use at least 14 "):
        adalog_constants(adalog_spec(13), 20)
    extreme = np.zeros((1, 12), np.uint8), np.full((12, 1), 63, np.uint8)
    assert int(spec.accumulate(adalog_constants(spec, 20), *extreme)[0, 0]) == 14 * 34 * 12


def test_adalog_bounds_count_the_floor_of_every_negative_product():
    spec = adalog_spec(20, code_bits=2, value_bits=1)
    constants = spec.check_constants(
        {"shift_table": np.full(4, 20), "mantissa_table": np.ones(4, int), "zero_v": np.array(1), **scaling(1, 4)}
    )
    lowest = spec.accumulate(constants, np.zeros((1, 12), np.uint8), np.zeros((12, 1), np.uint8))
    # (1 * -1) >> 20 is -1
    assert spec.bounds(constants)[0] == int(lowest[0, 0]) == -12


@pytest.mark.parametrize("guard", [0, 5, 32])
@pytest.mark.parametrize("largest_shift", [0, 7, 62, 63])
@pytest.mark.parametrize("q", [20, 255])
def test_adalog_decode_equals_fractions(guard, largest_shift, q):
    spec = AdaLogDecodeSpec(code_bits=4, guard_bits=guard, largest_shift=largest_shift)
    shifts, mantissas = adalog_tables(4, q)
    constants = spec.check_constants({"shift_table": shifts, "mantissa_table": mantissas})
    expected = [
        round(Fraction(m * 2**guard, 2**s)) if s <= largest_shift else 0
        for s, m in zip(shifts.tolist(), mantissas.tolist(), strict=True)
    ]
    assert spec.compute(constants, np.arange(17)).tolist() == [*expected, 0]


def test_adalog_code_zero_of_a_softmax_is_probability_one():
    assert probability_scale(16) == 2**16
    thresholds = adalog_thresholds(4, 37, probability_scale(16))
    assert (np.array([2**16, 2**15, 1])[:, None] <= thresholds).sum(axis=1).tolist() == [0, 1, 16]
