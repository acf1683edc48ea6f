"""Both integer softmaxes of golden against plain Python integers, Fractions and Decimals written independently."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from golden.errors import HwsimError
from golden.log_softmax import LogSoftmaxSpec, exponential_constants, lossless_fraction_bits, ratio_threshold
from golden.softmax import SoftmaxSpec

ZERO = 16


def log_softmax(scale, rows, **changes):
    """Codes of rows of 8-bit scores, and their spec and constants."""
    constants = exponential_constants(scale)
    fields = {"score_bits": 8, "code_bits": 4, "fraction_bits": 30, "row_length": 256, "polynomial_bits": 20} | changes
    spec = LogSoftmaxSpec(**fields)
    constants = spec.check_constants(constants)
    return spec.compute(constants, np.asarray(rows, dtype=spec.input.dtype)), spec, constants


def exponentials_of(scores, constants, n):
    """i-exp, step by step as published, in Python integers."""
    x0, b, c = (int(constants[name]) for name in ("x0", "b", "c"))
    result = []
    for score in scores:
        x = max(score - max(scores), n * x0)
        q = -x // -x0
        r = x - x0 * q
        result.append(max(0, (r * (r + b) + c) * 2 ** (n - q)))
    return result


def codes_of(scores, constants, n, bits, beyond="zero"):
    """Log2 codes as published: rounded ratio, highest bit, second highest bit."""
    exponentials = exponentials_of(scores, constants, n)
    codes = []
    for exponential in exponentials:
        past = 2**bits if beyond == "zero" else 2**bits - 1
        if exponential == 0:
            codes.append(past)
            continue
        ratio = round(Fraction(sum(exponentials), exponential))
        k = ratio.bit_length() - 1
        code = k + (ratio >> (k - 1) & 1 if k else 0)
        codes.append(code if code < 2**bits else past)
    return codes


# --- Log-Int-Softmax ---


def test_published_softmax_vectors():
    """Codes and exponentials of the released code, run in float64."""
    scores = np.array([40, 12, 0, -3, -25, -60, -127, 39]) + 128
    codes, spec, constants = log_softmax(0.0625, [scores])
    assert {name: int(value) for name, value in constants.items()} == {"x0": -12, "b": 43, "c": 714}
    assert codes.tolist() == [[1, 4, 5, 5, 7, 9, 15, 1]]
    assert spec.exponentials(constants)[scores.max() - scores].tolist() == [
        766651662336, 149786984448, 74893492224, 62008590336, 17582522368, 2340421632, 47448064, 721554505728,
    ]  # fmt: skip
    scores = np.array([100, 90, 80, 60, 20, -20, -100, -128]) + 128
    scale = float(np.float32(0.05))
    codes, _, constants = log_softmax(scale, [scores])
    assert {name: int(value) for name, value in constants.items()} == {"x0": -14, "b": 54, "c": 1116}
    assert codes.tolist() == [[1, 2, 3, 4, 7, 10, 15, ZERO]]
    assert log_softmax(scale, [scores], beyond="saturate")[0].tolist() == [[1, 2, 3, 4, 7, 10, 15, 15]]


@given(
    st.floats(0.004, 1.6),
    st.integers(1, 5),
    st.integers(0, 30),
    st.sampled_from(["zero", "saturate"]),
    st.lists(st.integers(0, 255), min_size=1, max_size=30),
)
def test_log_softmax_equals_python_integers(scale, bits, n, beyond, scores):
    codes, _, constants = log_softmax(scale, [scores], code_bits=bits, fraction_bits=n, beyond=beyond)
    assert codes.tolist() == [codes_of(scores, constants, n, bits, beyond)]


@given(
    st.integers(-300, -1),
    st.integers(0, 600),
    st.integers(1, 2**20 - 1),
    st.integers(0, 30),
    st.lists(st.integers(0, 255), min_size=1, max_size=20),
)
@example(-256, 0, 983551, 1, [0])  # the polynomial is 2**20 at 255 below the maximum
@example(-10, 50, 100, 8, [255, 250, 246, 245])  # the polynomial is 0 from 3 to 9 below the maximum
def test_log_softmax_of_any_constants(x0, b, c, n, scores):
    spec = LogSoftmaxSpec(score_bits=8, code_bits=4, fraction_bits=n, row_length=20, polynomial_bits=20)
    constants = {"x0": np.array(x0), "b": np.array(b), "c": np.array(c)}
    rests = [-(depth % -x0) for depth in range(min(255, n * -x0) + 1)]
    if max(rest * (rest + b) + c for rest in rests) >= 1 << 20:
        with pytest.raises(HwsimError, match="the polynomial exceeds 20 bits"):
            spec.check_constants(constants)
        return
    constants = spec.check_constants(constants)
    assert spec.compute(constants, np.array([scores], np.uint8)).tolist() == [codes_of(scores, constants, n, 4)]


def test_log_softmax_of_long_rows():
    random = np.random.default_rng(0)
    for length, low in itertools.product((50, 197, 256), (0, 200)):
        rows = random.integers(low, 256, (2, 3, length))
        codes, _, constants = log_softmax(0.05, rows)
        expected = [[codes_of(row, constants, 30, 4) for row in batch] for batch in rows.tolist()]
        assert codes.tolist() == expected


def divider_free(exponentials, bits):
    """Count of thresholds, by comparing twice the sum with multiples of the exponential."""
    codes = []
    for exponential in exponentials:
        code = 0
        for c in range(1, 2**bits + 1):
            t = ratio_threshold(c)
            left, right = 2 * sum(exponentials), (2 * t - 1) * exponential
            code += left > right or (left == right and t % 2 == 0)
        codes.append(min(code, 2**bits))
    return codes


@pytest.mark.parametrize("scale", [0.05, 0.2, 0.5, 1.2])
@pytest.mark.parametrize("bits", [2, 4])
def test_divider_free_form_on_every_short_row(scale, bits):
    rows = np.array(list(itertools.product(range(8), repeat=4)))
    codes, _, constants = log_softmax(scale, rows, code_bits=bits, score_bits=3)
    assert codes.tolist() == [divider_free(exponentials_of(row, constants, 30), bits) for row in rows.tolist()]


@given(st.floats(0.004, 1.6), st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_divider_free_form_equals_compute(scale, scores):
    codes, _, constants = log_softmax(scale, [scores])
    assert codes.tolist() == [divider_free(exponentials_of(scores, constants, 30), 4)]


def test_ratio_threshold_is_where_the_code_changes():
    for ratio in range(1, 1 << 14):
        k = ratio.bit_length() - 1
        code = k + (ratio >> (k - 1) & 1 if k else 0)
        assert ratio_threshold(code) <= ratio < ratio_threshold(code + 1)


def test_log_softmax_ties_go_to_the_even_ratio():
    # Scale 1: x0 = -1, so exponentials are powers of two. Ratios 3/2 -> 2, 5/2 -> 2 and 7/2 -> 4.
    assert log_softmax(1.0, [[1, 0, 0]])[0].tolist() == [[1, 2, 2]]
    assert log_softmax(1.0, [[1, 0]])[0].tolist() == [[1, 2]]
    assert log_softmax(1.0, [[1, 1, 0]])[0].tolist() == [[1, 1, 2]]
    assert log_softmax(1.0, [[1, 1, 1, 0]])[0].tolist() == [[2, 2, 2, 3]]


def test_log_softmax_corner_rows():
    assert log_softmax(0.05, [[7]])[0].tolist() == [[0]]
    assert log_softmax(0.05, [[0] * 4, [255] * 4])[0].tolist() == [[2] * 4] * 2
    assert log_softmax(0.05, [[255, 0, 0]])[0].tolist() == [[0, ZERO, ZERO]]
    # ratio 256 in a row of equals: code 8
    assert log_softmax(0.05, np.zeros((1, 256), int))[0].tolist() == [[8] * 256]


@pytest.mark.parametrize("scale", [0.02, 0.05, 0.1, 0.3])
def test_lossless_fraction_bits_change_no_code(scale):
    rows = np.random.default_rng(3).integers(0, 256, (40, 30))
    octave = -int(exponential_constants(scale)["x0"])
    n = lossless_fraction_bits(-octave, 8)
    assert n == 30 or (n - 1) * octave < 255 <= n * octave
    expected = log_softmax(scale, rows)[0]
    assert (log_softmax(scale, rows, fraction_bits=n)[0] == expected).all()
    if n < 30:
        coarser = log_softmax(scale, rows, fraction_bits=n // 2)[0]
        assert (coarser != expected).any()


def test_an_octave_is_the_published_0_6931_and_not_ln_2():
    # 0.6931 / 0.069312 = 9.9997 and ln 2 / 0.069312 = 10.0004
    assert int(exponential_constants(0.069312)["x0"]) == -10
    assert int(exponential_constants(0.069308)["x0"]) == -11


@pytest.mark.parametrize(
    ("scale", "message"),
    [(1.68, "score scale 1.68 is too coarse"), (0.0, "must be positive"), (math.nan, "must be positive")],
)
def test_scales_that_have_no_exponential_are_refused(scale, message):
    with pytest.raises(HwsimError, match=message):
        exponential_constants(scale)


SOFTMAX_SPECS = [
    LogSoftmaxSpec(score_bits=8, code_bits=4, fraction_bits=20, row_length=4, polynomial_bits=12),
    SoftmaxSpec(score_bits=8, fraction_bits=20, row_length=4, polynomial_bits=12, probability_bits=16),
]


@pytest.mark.parametrize("spec", SOFTMAX_SPECS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x0": 0}, "x0 must be negative, not 0"),
        ({"c": 0}, "c must be above 0"),
        ({"c": 4096}, "constant 'c' must be between 0 and 4095"),
        # at 99 below the maximum the polynomial is 99 * 99 + 1
        ({"x0": -100, "b": 0, "c": 1}, "the polynomial exceeds 12 bits; widen polynomial_bits"),
    ],
)
def test_exponentials_out_of_range_are_refused(spec, change, message):
    constants = {name: np.array(value) for name, value in ({"x0": -12, "b": 43, "c": 714} | change).items()}
    with pytest.raises(HwsimError, match=message):
        spec.check_constants(constants)


@pytest.mark.parametrize("spec", SOFTMAX_SPECS)
def test_a_row_that_is_too_long_is_refused(spec):
    constants = spec.check_constants(exponential_constants(0.0625))
    with pytest.raises(HwsimError, match="a row of 5 exceeds row_length 4"):
        spec.compute(constants, np.zeros((1, 5), np.uint8))


# --- softmax to fixed point ---


@given(
    st.floats(0.004, 1.6),
    st.integers(0, 16),
    st.integers(1, 20),
    st.lists(st.integers(0, 255), min_size=1, max_size=30),
)
def test_softmax_equals_fractions(scale, n, probability_bits, scores):
    spec = SoftmaxSpec(
        score_bits=8, fraction_bits=n, row_length=30, polynomial_bits=20, probability_bits=probability_bits
    )
    constants = spec.check_constants(exponential_constants(scale))
    exponentials = exponentials_of(scores, constants, n)
    expected = [round(Fraction(2**probability_bits * e, sum(exponentials))) for e in exponentials]
    assert spec.compute(constants, np.array([scores], np.uint8)).tolist() == [expected]


def test_softmax_of_one_element_is_one():
    spec = SoftmaxSpec(score_bits=8, fraction_bits=17, row_length=4, polynomial_bits=20, probability_bits=24)
    constants = spec.check_constants(exponential_constants(0.05))
    result = spec.compute(constants, np.array([[0], [255]], np.uint8))
    assert result.tolist() == [[2**24]] * 2
    assert result.dtype == np.uint32
