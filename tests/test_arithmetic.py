"""The integer primitives against Python's own integers, Fractions and round()."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from golden.accumulate import accumulate, dot_bounds, prove_fits
from golden.arithmetic import (
    bit_length,
    dyadic,
    reciprocal_sqrt,
    round_half_even_divide,
    round_half_even_shift,
    saturate,
    wrap,
)
from golden.errors import HwsimError
from golden.spec import IntFormat

wide = st.integers(-(2**62) + 1, 2**62 - 1)


def array(*values):
    return np.array(values, dtype=np.int64)


# --- rounding ---


@given(wide, st.integers(0, 63))
@example(-1, 63)
@example(0, 63)
@example(2**62 - 1, 63)
@example(-(2**62) + 1, 63)
def test_shift_rounds_as_python_rounds_fractions(x, shift):
    expected = round(Fraction(x, 2**shift))
    assert round_half_even_shift(x, shift) == expected
    assert round_half_even_shift(array(x), shift).tolist() == [expected]


def test_shift_on_every_tie_of_both_signs():
    x = np.arange(-4096, 4097)
    for shift in range(14):
        expected = [round(Fraction(value, 2**shift)) for value in x.tolist()]
        assert round_half_even_shift(x, shift).tolist() == expected
        assert [round_half_even_shift(value, shift) for value in x.tolist()] == expected


def test_shift_named_ties():
    # 0.5, 1.5, 2.5, -0.5, -1.5, -2.5 in halves
    assert round_half_even_shift(array(1, 3, 5, -1, -3, -5), 1).tolist() == [0, 2, 2, 0, -2, -2]
    assert round_half_even_shift(array(7, -7), 0).tolist() == [7, -7]


def test_shift_broadcasts():
    x, shift = array(13, -13), array(0, 1, 2)
    expected = [[round(Fraction(value, 2**s)) for s in (0, 1, 2)] for value in (13, -13)]
    assert round_half_even_shift(x[:, None], shift).tolist() == expected
    assert round_half_even_shift(x, shift[:2]).dtype == np.int64


@given(st.integers(-(2**60), 2**60), st.integers(1, 2**60))
@example(5, 2)
@example(-5, 2)
@example(-3, 2)
def test_divide_rounds_as_python_rounds_fractions(numerator, denominator):
    quotient = round_half_even_divide(array(numerator), array(denominator))
    assert quotient.tolist() == [round(Fraction(numerator, denominator))]


def test_divide_on_every_small_pair():
    numerator, denominator = np.meshgrid(np.arange(-300, 301), np.arange(1, 65))
    expected = [
        [round(Fraction(n, d)) for n, d in zip(ns, ds, strict=True)]
        for ns, ds in zip(numerator.tolist(), denominator.tolist(), strict=True)
    ]
    assert round_half_even_divide(numerator, denominator).tolist() == expected


@given(st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**30), st.integers(0, 45), st.integers(-(2**15), 2**15))
@example(1, 1, 1, 1)  # 0.5 + 1: the tie goes to the even code, 2, not to 0 + 1
@example(1, 1, 1, 2)
def test_dyadic_adds_the_zero_point_before_rounding(x, multiplier, shift, zero_point):
    expected = round(Fraction(x * multiplier, 2**shift) + zero_point)
    assert dyadic(array(x), multiplier, shift, zero_point).tolist() == [expected]


# --- saturation and wrapping ---


@pytest.mark.parametrize("format", [IntFormat(1), IntFormat(8), IntFormat(8, True), IntFormat(13, True), IntFormat(63)])
def test_saturate_clips_to_the_format(format):
    bounds = [0, 2**format.bits - 1] if not format.signed else [-(2 ** (format.bits - 1)), 2 ** (format.bits - 1) - 1]
    values = [-(2**63), -(2**62), *(b + d for b in bounds for d in (-1, 0, 1) if b + d < 2**63), 2**62, 2**63 - 1]
    clipped = saturate(array(*values), format)
    assert clipped.tolist() == [min(max(v, bounds[0]), bounds[1]) for v in values]
    assert clipped.dtype == format.dtype


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 64))
def test_wrap_is_congruent_and_in_range(x, bits):
    wrapped = int(wrap(array(x), bits)[0])
    assert (wrapped - x) % 2**bits == 0
    assert -(2 ** (bits - 1)) <= wrapped < 2 ** (bits - 1)


# --- bit length ---


@given(st.integers(0, 2**63 - 1))
def test_bit_length_is_pythons(x):
    assert bit_length(array(x)).tolist() == [x.bit_length()]


def test_bit_length_at_every_power():
    powers = [0, *(2**k + d for k in range(63) for d in (-1, 0, 1)), 2**63 - 1]
    assert bit_length(array(*powers)).tolist() == [value.bit_length() for value in powers]


# --- reciprocal square root ---


def check_reciprocal_sqrt(radicand, mantissa_bits, radicand_bits):
    """The documented definition and error bound, in exact integers."""
    mantissa, exponent = reciprocal_sqrt(radicand, mantissa_bits, radicand_bits)
    smallest, largest = 2 ** (mantissa_bits - 1), 2**mantissa_bits - 1
    assert smallest <= mantissa <= largest
    half_length = -(-radicand.bit_length() // 2)
    assert exponent == mantissa_bits - 1 + half_length
    # d = the leading radicand_bits bits at an even alignment
    d = radicand * 4 ** (radicand_bits // 2) // 4**half_length
    assert 2 ** (radicand_bits - 2) <= d < 2**radicand_bits
    limit = 2 ** (radicand_bits + 2 * (mantissa_bits - 1))
    assert mantissa**2 * d <= limit
    assert mantissa == largest or limit < (mantissa + 1) ** 2 * d
    # -2**(1-p) < mantissa * 2**-exponent * sqrt(radicand) - 1 < 2**(1-R), squared so that no root is taken
    square = Fraction(mantissa**2 * radicand, 4**exponent)
    assert (1 - Fraction(2, 2**mantissa_bits)) ** 2 <= square < (1 + Fraction(2, 2**radicand_bits)) ** 2


@given(st.integers(1, 2**62), st.integers(4, 24), st.integers(2, 8).map(lambda half: 2 * half))
@example(1, 4, 4)
@example(2**62, 24, 4)
@example(2**62 - 1, 24, 16)
def test_reciprocal_sqrt_keeps_its_definition_and_error_bound(radicand, mantissa_bits, radicand_bits):
    check_reciprocal_sqrt(radicand, mantissa_bits, radicand_bits)


@pytest.mark.parametrize(("mantissa_bits", "radicand_bits"), [(4, 4), (6, 8), (12, 16), (16, 16), (16, 24)])
def test_reciprocal_sqrt_of_every_small_radicand(mantissa_bits, radicand_bits):
    for radicand in range(1, 2500):
        check_reciprocal_sqrt(radicand, mantissa_bits, radicand_bits)


def test_reciprocal_sqrt_named_values():
    # 1/sqrt(4) = 2**-1; a power of four is where the mantissa would need one bit more and saturates
    assert reciprocal_sqrt(4, 8, 16) == (255, 9)
    # 1/sqrt(2) = 0.7071...: 181 = floor(0.7071 * 2**8)
    assert reciprocal_sqrt(2, 8, 16) == (181, 8)
    # the next bits of the radicand do not count once radicand_bits are used
    assert reciprocal_sqrt(0b1011 << 20, 8, 4) == reciprocal_sqrt((0b1011 << 20) + 2**20 - 1, 8, 4)


def test_reciprocal_sqrt_check_sees_a_wrong_mantissa(monkeypatch):
    right = reciprocal_sqrt(12345, 12, 16)
    for wrong in (-1, 1):
        monkeypatch.setitem(globals(), "reciprocal_sqrt", lambda *_, by=wrong: (right[0] + by, right[1]))
        with pytest.raises(AssertionError):
            check_reciprocal_sqrt(12345, 12, 16)


def test_reciprocal_sqrt_against_decimal():
    with localcontext() as context:
        context.prec = 60
        for radicand in (3, 1000, 10**9 + 7, 2**61 - 1):
            mantissa, exponent = reciprocal_sqrt(radicand, 24, 32)
            relative = mantissa * Decimal(2) ** -exponent * Decimal(radicand).sqrt() - 1
            assert -(Decimal(2) ** -23) < relative < Decimal(2) ** -31


# --- accumulators ---


def small_matrices(seed):
    random = np.random.default_rng(seed)
    return random.integers(-99, 100, (3, 7)), random.integers(0, 256, (7, 4)), random.integers(-500, 500, 4)


@pytest.mark.parametrize("overflow", ["prove", "wrap", "saturate"])
@pytest.mark.parametrize("bits", [10, 16, 24])
def test_accumulate_is_what_one_register_does(overflow, bits):
    format = IntFormat(bits, signed=True)
    changed = 0
    for seed in range(5):
        a, b, start = small_matrices(seed)
        result = accumulate(a, b, start, format, overflow)
        for row in range(3):
            for column in range(4):
                register = exact = int(start[column])
                for k in range(7):
                    product = int(a[row, k]) * int(b[k, column])
                    exact += product
                    register += product
                    if overflow == "wrap":
                        register = (register + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
                    elif overflow == "saturate":
                        register = min(max(register, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
                assert int(result[row, column]) == register
                changed += register != exact
    assert (changed > 0) == (overflow != "prove" and bits < 24)


def test_accumulate_over_batches():
    random = np.random.default_rng(0)
    a, b = random.integers(-9, 9, (2, 5, 3, 6)), random.integers(-9, 9, (2, 5, 6, 4))
    expected = np.einsum("bhik,bhkj->bhij", a, b)
    for overflow in ("prove", "wrap", "saturate"):
        assert (accumulate(a, b, 0, IntFormat(32, signed=True), overflow) == expected).all()


def test_saturating_start_is_clipped_too():
    result = accumulate(np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64), 1000, IntFormat(8, True), "saturate")
    assert result.tolist() == [[127]]


def test_dot_bounds_hold_for_every_input_and_are_reached():
    weight, bias = np.array([[2, -3, 1], [-1, -1, 0]]), np.array([5, -4])
    seen = []
    for x in np.ndindex(4, 4, 4):
        for row in range(2):
            partial = int(bias[row])
            seen.append(partial)
            for k in range(3):
                partial += int(weight[row, k]) * x[k]
                seen.append(partial)
    low, high = dot_bounds(weight, bias, 0, 3)
    assert low <= min(seen)
    assert high >= max(seen)
    # attained by a final sum of some row and input
    assert high == 5 + 2 * 3 + 1 * 3
    assert low == -4 - 3 - 3


@pytest.mark.parametrize(("low", "high", "needed"), [(-128, 127, 8), (-129, 0, 9), (0, 128, 9), (0, 0, 1), (-1, 0, 1)])
def test_prove_fits_names_the_width_that_would_do(low, high, needed):
    prove_fits(low, high, IntFormat(needed, signed=True), "layer")
    if needed > 1:
        with pytest.raises(HwsimError, match=rf"layer: .* overflow.*use at least {needed}$"):
            prove_fits(low, high, IntFormat(needed - 1, signed=True), "layer")
