"""Linear layers on logarithmic codes and with asymmetric weights, against plain Python integers and Fractions."""

from fractions import Fraction

import numpy as np
import pytest
from requantization import clipped, requantizer, scaling

from golden.adalog import adalog_tables, log_thresholds, lossless_guard_bits
from golden.adalog_linear import AdaLogLinearSpec
from golden.asymmetric_linear import AsymmetricLinearSpec
from golden.errors import HwsimError
from golden.log_sqrt2 import LogSqrt2LinearSpec, LogSqrt2MatmulSpec

RNG = np.random.default_rng(5)
WEIGHT = RNG.integers(0, 16, (3, 6))
ZERO = np.array([0, 7, 15])
BIAS = np.array([-3000, 0, 5000])


def test_asymmetric_linear_is_the_sum_of_centred_products():
    spec = AsymmetricLinearSpec(
        input_features=6, output_features=3, input_bits=4, weight_bits=4, bias_bits=14, requantize=requantizer()
    )
    codes = RNG.integers(0, 16, (5, 6))
    constants = spec.check_constants(
        {"weight": WEIGHT, "zero_weight": ZERO, "bias": BIAS, **scaling([5], [8], zero_point=100)}
    )
    found = spec.compute(constants, codes)
    for row in range(5):
        for out in range(3):
            total = int(BIAS[out]) + sum((int(WEIGHT[out, k]) - int(ZERO[out])) * int(codes[row, k]) for k in range(6))
            assert found[row, out] == clipped(Fraction(5 * total, 2**8) + 100)
    wrong = spec.compute({**constants, "zero_weight": ZERO + np.array([0, 1, 0])}, codes)
    assert not np.array_equal(wrong, found)


def adalog_spec(guard_bits, **changes):
    fields = {"code_bits": 3, "weight_bits": 4, "bias_bits": 40, "guard_bits": guard_bits, "largest_shift": 40}
    return AdaLogLinearSpec(
        input_features=6, output_features=3, requantize=requantizer(46, channels=3), **(fields | changes)
    )


@pytest.mark.parametrize(("q", "guard_bits"), [(20, 3), (20, 0), (137, 25), (137, 6)])
def test_adalog_linear_cuts_each_product_below_the_guard_bits(q, guard_bits):
    spec = adalog_spec(guard_bits)
    shift, mantissa = (table.tolist() for table in adalog_tables(3, q))
    codes = RNG.integers(0, 9, (50, 6))
    constants = spec.check_constants(
        {
            "weight": WEIGHT,
            "zero_weight": ZERO,
            "bias": BIAS,
            "shift_table": np.array(shift),
            "mantissa_table": np.array(mantissa),
            **scaling([3, 5, 7], [9, 8, 7], zero_point=60),
        }
    )
    sums, found = spec.accumulate(constants, codes), spec.compute(constants, codes)
    low, high = spec.bounds(constants)
    for row in range(50):
        for out in range(3):
            total = int(BIAS[out])
            for k in range(6):
                code = int(codes[row, k])
                if code < 8 and shift[code] <= 40:
                    product = mantissa[code] * (int(WEIGHT[out, k]) - int(ZERO[out])) * 2**guard_bits
                    total += product // 2 ** shift[code]
            assert low <= total <= high
            assert sums[row, out] == total
            assert found[row, out] == clipped(Fraction([3, 5, 7][out] * total, 2 ** [9, 8, 7][out]) + 60)


def test_adalog_linear_is_the_matrix_product_unit_on_its_weights():
    spec = adalog_spec(2)
    shift, mantissa = adalog_tables(3, 30)
    constants = spec.check_constants(
        {
            "weight": WEIGHT,
            "zero_weight": ZERO,
            "bias": BIAS,
            "shift_table": shift,
            "mantissa_table": mantissa,
            **scaling([1, 1, 1], [0, 0, 0]),
        }
    )
    product, shared, weights = spec.product(constants)
    shared = product.check_constants(shared)  # proves the accumulator
    assert weights.min() >= 1
    assert weights.max() < 2**product.value_bits
    codes = RNG.integers(0, 9, (20, 6))
    assert np.array_equal(product.accumulate(shared, codes, weights) + BIAS, spec.accumulate(constants, codes))


def test_lossless_guard_bits_lose_nothing():
    guard = lossless_guard_bits(3, 137)
    spec = adalog_spec(guard)
    shift, mantissa = adalog_tables(3, 137)
    constants = {"weight": WEIGHT, "zero_weight": ZERO, "bias": 0 * BIAS, "shift_table": shift}
    constants |= {"mantissa_table": mantissa, **scaling([1, 1, 1], [0, 0, 0])}
    codes = RNG.integers(0, 9, (20, 6))
    entries = [Fraction(int(m), 2 ** int(s)) for m, s in zip(mantissa, shift, strict=True)] + [Fraction(0)]
    for row, sums in zip(codes, spec.accumulate(spec.check_constants(constants), codes), strict=True):
        for out in range(3):
            exact = sum(entries[c] * int(w - ZERO[out]) for c, w in zip(row, WEIGHT[out], strict=True))
            assert Fraction(int(sums[out]), 2**guard) == exact


def test_an_adalog_accumulator_that_could_overflow_is_refused():
    spec = adalog_spec(20)
    shift, mantissa = adalog_tables(3, 20)
    constants = {"weight": WEIGHT, "zero_weight": ZERO, "bias": BIAS, "shift_table": shift, "mantissa_table": mantissa}
    narrow = AdaLogLinearSpec(
        **{
            **{name: getattr(spec, name) for name in spec.__dataclass_fields__},
            "requantize": requantizer(20, channels=3),
        }
    )
    with pytest.raises(HwsimError, match="adalog_linear: the accumulator could overflow"):
        narrow.check_constants({**constants, **scaling([1, 1, 1], [0, 0, 0])})


def root2_code(numerator, denominator):
    """Half-octaves below 1, rounded: code u when ratio**4 lies between 2**-(2u+1) and 2**-(2u-1)."""
    u = 0
    while numerator**4 * 2 ** (2 * u + 1) < denominator**4:
        u += 1
    return u


@pytest.mark.parametrize("scale", [Fraction(4096), Fraction(9000, 7)])
def test_log_sqrt2_thresholds_are_half_octaves(scale):
    thresholds = log_thresholds(4, Fraction(1, 2), scale)
    for x in range(1, 4097, 3):
        code = sum(x <= threshold for threshold in thresholds.tolist())
        expected = root2_code(x * scale.denominator, scale.numerator)
        assert code == min(expected, 16)
    assert (thresholds >= 0).all()


@pytest.mark.parametrize(("heads", "guard_bits"), [(1, 7), (2, 7), (2, 3)])
def test_log_sqrt2_matmul_adds_even_and_odd_codes_apart(heads, guard_bits):
    spec = LogSqrt2MatmulSpec(
        code_bits=4,
        value_bits=4,
        row_length=6,
        guard_bits=guard_bits,
        heads=heads,
        requantize=requantizer(30, channels=heads),
    )
    zero = np.array([3, 12])[:heads]
    constants = spec.check_constants(
        {
            "zero_v": zero if heads > 1 else zero[0],
            "multiplier_odd": np.array([70, 71])[:heads],
            **scaling([99, 101][:heads], [13, 12][:heads], zero_point=90),
        }
    )
    codes, values = RNG.integers(0, 17, (2, heads, 4, 6)), RNG.integers(0, 16, (2, heads, 6, 3))
    found = spec.compute(constants, codes, values)
    for index in np.ndindex(2, heads, 4, 3):
        image, head, row, column = index
        sums = [0, 0]
        for k in range(6):
            code = int(codes[image, head, row, k])
            if code < 16:
                value = (int(values[image, head, k, column]) - int(zero[head])) * 2**guard_bits
                sums[code % 2] += value // 2 ** (code // 2)
        exact = Fraction(sums[0] * [99, 101][head] + sums[1] * [70, 71][head], 2 ** [13, 12][head])
        assert found[index] == clipped(exact + 90)


def test_log_sqrt2_linear_has_its_bias_in_the_even_sum():
    spec = LogSqrt2LinearSpec(
        input_features=6,
        output_features=3,
        code_bits=3,
        weight_bits=4,
        bias_bits=14,
        guard_bits=3,
        requantize=requantizer(30),
    )
    constants = {"weight": WEIGHT, "zero_weight": ZERO, "bias": BIAS, "multiplier_odd": np.array([23])}
    constants = spec.check_constants({**constants, **scaling([32], [9], zero_point=128)})
    codes = RNG.integers(0, 9, (9, 6))
    found = spec.compute(constants, codes)
    for row in range(9):
        for out in range(3):
            sums = [int(BIAS[out]), 0]
            for k in range(6):
                code = int(codes[row, k])
                if code < 8:
                    sums[code % 2] += (int(WEIGHT[out, k]) - int(ZERO[out])) * 8 // 2 ** (code // 2)
            assert found[row, out] == clipped(Fraction(sums[0] * 32 + sums[1] * 23, 2**9) + 128)


def test_two_multipliers_that_do_not_fit_are_refused():
    with pytest.raises(HwsimError, match="exceed 62 bits; take fewer guard bits"):
        LogSqrt2MatmulSpec(
            code_bits=4, value_bits=8, row_length=8, guard_bits=7, requantize=requantizer(46, multiplier_bits=16)
        )
