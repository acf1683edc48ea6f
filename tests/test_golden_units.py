"""Matrix products, tables and additions of golden against plain Python integers and Fractions written independently."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from requantization import clipped, requantizer, scaling

from golden.add import AddSpec
from golden.errors import HwsimError
from golden.linear import LinearSpec
from golden.log2_matmul import Log2MatmulSpec
from golden.log_softmax import LogSoftmaxSpec, exponential_constants
from golden.lookup import LookupSpec
from golden.matmul import MatmulSpec
from golden.requantize import dyadic_parts

# --- requantize ---


@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8),
    st.integers(0, 2**15 - 1),
    st.integers(0, 50),
    st.integers(-256, 255),
)
def test_requantize_equals_fractions(values, multiplier, shift, zero_point):
    spec = requantizer()
    constants = spec.check_constants(scaling(multiplier, shift, zero_point))
    expected = [clipped(Fraction(x * multiplier, 2**shift) + zero_point) for x in values]
    assert spec.compute(constants, np.array(values, np.int32)).tolist() == expected


def test_requantize_ties_go_to_the_even_code():
    spec = requantizer()
    for zero_point in (0, 1):
        constants = spec.check_constants(scaling(1, 1, zero_point))
        codes = spec.compute(constants, np.arange(20))
        assert codes.tolist() == [round(Fraction(x, 2) + zero_point) for x in range(20)]
    # 0.5 and zero point 1: 1.5 is the code 2, where rounding first would give 1
    assert spec.compute(constants, np.array([1])).tolist() == [2]


def test_requantize_by_channel():
    random = np.random.default_rng(0)
    spec = requantizer(channels=5)
    multiplier, shift = random.integers(0, 2**15, 5), random.integers(10, 30, 5)
    constants = spec.check_constants(scaling(multiplier, shift, 7))
    values = random.integers(-(2**24), 2**24, (2, 3, 5))
    result = spec.compute(constants, values)
    for index in np.ndindex(values.shape):
        c = index[-1]
        assert result[index] == clipped(Fraction(int(values[index]) * int(multiplier[c]), 2 ** int(shift[c])) + 7)


def test_requantize_extremes_do_not_overflow():
    spec = requantizer(bits=31, multiplier_bits=31, output_bits=16)
    for shift in (0, 1, 30, 45):
        constants = spec.check_constants(scaling(2**31 - 1, shift, -(2**16)))
        values = [-(2**30), -1, 0, 1, 2**30 - 1]
        expected = [clipped(Fraction(x * (2**31 - 1), 2**shift) - 2**16, 16) for x in values]
        assert spec.compute(constants, np.array(values)).tolist() == expected


def test_requantize_refuses_a_shift_past_its_zero_point():
    with pytest.raises(HwsimError, match="requantize: shift 54 moves the zero point past 62 bits"):
        requantizer().check_constants(scaling(1, 54))
    requantizer().check_constants(scaling(1, 53))


@pytest.mark.parametrize("ratio", [0.37, 1.0, 0.001234, 7.3, 3.99999, 0.5, 15.2, 1e-4])
def test_dyadic_parts_are_the_nearest(ratio):
    bits, shift_bits = 5, 4
    multiplier, shift, error = dyadic_parts(ratio, bits, shift_bits)
    assert 0 < multiplier < 2**bits and 0 <= shift < 2**shift_bits
    distance = {
        (m, s): abs(Fraction(m, 2**s) - Fraction(ratio)) for m in range(1, 2**bits) for s in range(2**shift_bits)
    }
    assert distance[multiplier, shift] == min(distance.values())
    assert error == float(distance[multiplier, shift] / Fraction(ratio))


def test_dyadic_parts_fill_the_multiplier():
    for ratio in np.random.default_rng(0).uniform(1e-6, 100, 200).tolist():
        multiplier, shift, error = dyadic_parts(ratio, 16)
        assert 2**15 <= multiplier < 2**16
        assert error <= 2**-16
        assert abs(multiplier / 2**shift / ratio - 1) == pytest.approx(error, abs=1e-15)


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan, math.inf, 1e-12, 1e6])
def test_dyadic_parts_refuse_what_they_cannot_reach(ratio):
    with pytest.raises(HwsimError, match=r"positive and finite|needs a multiplier outside"):
        dyadic_parts(ratio, 8, 4)


# --- lookup and add ---


def test_lookup_reads_its_table():
    random = np.random.default_rng(0)
    for channels in (1, 3):
        spec = LookupSpec(input_bits=6, output_bits=11, channels=channels)
        table = random.integers(0, 2**11, (channels, 64))
        codes = random.integers(0, 64, (2, 5, 3))
        result = spec.compute(spec.check_constants({"table": table}), codes.astype(np.uint8))
        for index in np.ndindex(codes.shape):
            assert result[index] == table[index[-1] if channels > 1 else 0][codes[index]]
        assert result.dtype == np.uint16


@given(st.data())
def test_add_equals_fractions(data):
    """Up to the widest fields, whose sums come near 2**62."""
    a_bits, b_bits, multiplier_bits = (data.draw(st.integers(1, high)) for high in (16, 16, 31))
    spec = AddSpec(
        channels=2, a_bits=a_bits, b_bits=b_bits, output_bits=8, multiplier_bits=multiplier_bits, shift_bits=6,
        offset_bits=61,
    )  # fmt: skip
    integers = lambda bits: data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=2, max_size=2))  # noqa: E731
    a, b, first, second, shift = (integers(n) for n in (a_bits, b_bits, multiplier_bits, multiplier_bits, 6))
    offset = [value - 2**60 for value in integers(61)]
    constants = {"multiplier_a": first, "multiplier_b": second, "offset": offset, "shift": shift}
    constants = spec.check_constants({name: np.array(values, np.int64) for name, values in constants.items()})
    expected = [clipped(Fraction(a[c] * first[c] + b[c] * second[c] + offset[c], 2 ** shift[c])) for c in range(2)]
    assert spec.compute(constants, np.array([a], np.uint16), np.array([b], np.uint16)).tolist() == [expected]


def test_add_at_the_largest_shift_and_sum():
    spec = AddSpec(channels=1, a_bits=16, b_bits=16, output_bits=8, multiplier_bits=31, shift_bits=6, offset_bits=61)
    for shift, offset in itertools.product((58, 59, 60, 62, 63), (2**60 - 1, 2**57, 0, -(2**60))):
        constants = spec.check_constants(
            {
                "multiplier_a": np.array([2**31 - 1]),
                "multiplier_b": np.array([2**31 - 1]),
                "offset": np.array([offset]),
                "shift": np.array([shift]),
            }
        )
        total = 2 * (2**16 - 1) * (2**31 - 1) + offset
        codes = np.array([[2**16 - 1]], np.uint16)
        assert spec.compute(constants, codes, codes).tolist() == [[clipped(Fraction(total, 2**shift))]]


# --- linear and matmul ---


def register(products, start, overflow, bits):
    """What an accumulator of `bits` holds after the products, taken in order."""
    total = start
    if overflow == "saturate":
        total = min(max(total, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
    for product in products:
        total += product
        if overflow == "saturate":
            total = min(max(total, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
    if overflow == "wrap":
        total = (total + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
    return total


@pytest.mark.parametrize(("overflow", "bits"), [("prove", 24), ("wrap", 14), ("saturate", 14)])
@pytest.mark.parametrize("channels", [1, 4])
def test_linear_equals_python_integers(overflow, bits, channels):
    random = np.random.default_rng(1)
    spec = LinearSpec(
        input_features=9, output_features=4, input_bits=8, weight_bits=8, bias_bits=16, overflow=overflow,
        requantize=requantizer(bits, channels=channels),
    )  # fmt: skip
    weight, bias = random.integers(-128, 128, (4, 9)), random.integers(-(2**13), 2**13, 4)
    multiplier, shift = random.integers(1, 2**15, channels), random.integers(15, 22, channels)
    constants = spec.check_constants({"weight": weight, "bias": bias, **scaling(multiplier, shift, 100)})
    codes = random.integers(0, 256, (3, 5, 9))
    sums = spec.accumulate(constants, codes.astype(np.uint8))
    result = spec.compute(constants, codes.astype(np.uint8))
    narrow = 0
    for index in np.ndindex(3, 5, 4):
        row, output = codes[index[:2]].tolist(), index[2]
        products = [w * x for w, x in zip(weight[output].tolist(), row, strict=True)]
        total = register(products, int(bias[output]), overflow, bits)
        narrow += total != sum(products) + int(bias[output])
        c = output if channels > 1 else 0
        assert sums[index] == total
        assert result[index] == clipped(Fraction(total * int(multiplier[c]), 2 ** int(shift[c])) + 100)
    assert (narrow > 0) == (overflow != "prove")


def test_linear_proves_its_accumulator_from_the_weights():
    def check(bits, overflow="prove"):
        spec = LinearSpec(
            input_features=2, output_features=2, input_bits=4, weight_bits=8, bias_bits=16, overflow=overflow,
            requantize=requantizer(bits),
        )  # fmt: skip
        # rows reach 15 * (100 + 27) + 143 = 2048 and -15 * 128 - 128 = -2048
        constants = {"weight": np.array([[100, 27], [-128, 0]]), "bias": np.array([143, -128]), **scaling(1, 4)}
        return spec.bounds(spec.check_constants(constants))

    assert check(13) == (-2048, 2048)
    with pytest.raises(HwsimError, match=r"linear: .* overflow: sums reach -2048\.\.2048, .* use at least 13 "):
        check(12)
    check(12, "wrap")
    check(12, "saturate")


@pytest.mark.parametrize(("overflow", "bits"), [("prove", 24), ("wrap", 12), ("saturate", 12)])
def test_matmul_equals_python_integers(overflow, bits):
    random = np.random.default_rng(2)
    spec = MatmulSpec(a_bits=6, b_bits=7, inner=5, overflow=overflow, requantize=requantizer(bits))
    constants = spec.check_constants({"zero_a": np.array(-3), "zero_b": np.array(77), **scaling(900, 16, 128)})
    a, b = random.integers(0, 64, (2, 3, 4, 5)), random.integers(0, 128, (2, 3, 5, 6))
    sums = spec.accumulate(constants, a.astype(np.uint8), b.astype(np.uint8))
    result = spec.compute(constants, a.astype(np.uint8), b.astype(np.uint8))
    for index in np.ndindex(sums.shape):
        image, head, row, column = index
        products = [
            (x + 3) * (y - 77)
            for x, y in zip(a[image, head, row].tolist(), b[image, head, :, column].tolist(), strict=True)
        ]
        total = register(products, 0, overflow, bits)
        assert sums[index] == total
        assert result[index] == clipped(Fraction(total * 900, 2**16) + 128)


def test_matmul_proves_its_accumulator_from_the_zero_points():
    def check(bits):
        spec = MatmulSpec(a_bits=4, b_bits=4, inner=10, requantize=requantizer(bits))
        constants = spec.check_constants({"zero_a": np.array(0), "zero_b": np.array(-1), **scaling(1, 4)})
        low, high = spec.bounds(constants)
        extreme = spec.accumulate(constants, np.full((1, 10), 15, np.uint8), np.full((10, 1), 15, np.uint8))
        assert low <= int(extreme.max()) <= high == 10 * 15 * 16

    check(13)
    with pytest.raises(HwsimError, match=r"matmul: .* overflow.* use at least 13 "):
        check(12)


# --- attention times V ---


def log2_spec(bits=25, **changes):
    fields = {"code_bits": 4, "value_bits": 8, "row_length": 30}
    return Log2MatmulSpec(requantize=requantizer(bits), **(fields | changes))


def test_log2_matmul_equals_fractions():
    random = np.random.default_rng(3)
    for code_bits, beyond in itertools.product((3, 4), ("zero", "saturate")):
        spec = log2_spec(40, code_bits=code_bits, beyond=beyond)
        constants = spec.check_constants({"zero_v": np.array(131), **scaling(700, 24, 60)})
        last = 2**code_bits - 1
        codes, values = random.integers(0, last + 1 + (beyond == "zero"), (2, 4, 6)), random.integers(0, 256, (2, 6, 5))
        sums = spec.accumulate(constants, codes.astype(np.uint8), values.astype(np.uint8))
        result = spec.compute(constants, codes.astype(np.uint8), values.astype(np.uint8))
        for head, row, column in np.ndindex(sums.shape):
            total = sum(
                Fraction(int(v) - 131, 2 ** int(c))
                for c, v in zip(codes[head, row], values[head, :, column], strict=True)
                if c <= last
            )
            assert int(sums[head, row, column]) == total * 2**last
            assert result[head, row, column] == clipped(total * 2**last * Fraction(700, 2**24) + 60)


@pytest.mark.parametrize("beyond", ["zero", "saturate"])
@pytest.mark.parametrize("scale", [0.1, 0.45, 1.2])
def test_no_softmax_row_weighs_more_than_the_accumulator_is_proven_for(scale, beyond):
    softmax = LogSoftmaxSpec(
        score_bits=3, code_bits=2, fraction_bits=30, row_length=5, polynomial_bits=12, beyond=beyond
    )
    constants = softmax.check_constants(exponential_constants(scale))
    rows = np.array(list(itertools.product(range(8), repeat=5)), np.uint8)
    codes = softmax.compute(constants, rows)
    weights = np.array([8, 4, 2, 1, 0])[codes].sum(axis=1)
    spec = log2_spec(code_bits=2, row_length=5, beyond=beyond)
    assert weights.max() <= spec.largest_row_weight
    assert beyond == "saturate" or weights.max() < 12


def test_log2_matmul_proves_25_bits_for_a_row():
    constants = {"zero_v": np.array(0), **scaling(1, 4)}
    log2_spec(25, row_length=1 << 14).check_constants(constants)
    with pytest.raises(HwsimError, match=r"log2_matmul: .* overflow.* use at least 25$"):
        log2_spec(24, row_length=1 << 14).check_constants(constants)
