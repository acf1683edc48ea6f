"""`golden.published`: softmax and LayerNorm against published vectors and outside arithmetic; all refusals.

The outside paths are written here from the formulas: torch in float64 (how the released code is
run for conformance), Python fractions, and decimals for roots.
"""

import itertools
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golden import published
from golden.errors import HwsimError
from golden.log_softmax import exponential_constants, exponential_table
from golden.published.layernorm import channel_constants, mantissa_and_shift, round_difference


def fp32(value):
    return float(np.float32(value))


def mismatches(expected, got):
    """Number of elements that differ; the one comparison of this file."""
    expected, got = np.asarray(expected), np.asarray(got)
    assert expected.shape == got.shape
    return int((expected != got).sum())


# --- the released procedures in torch float64, with their constants open to corruption ---


def torch_log_int_softmax(k, scale, bits=4, n=30, ln2=0.6931, b=0.96963238, threshold=1.5):
    s = torch.tensor(scale, dtype=torch.float64)
    x = torch.tensor(k, dtype=torch.float64) * s / s
    x0 = torch.floor(-ln2 / s)
    b_int, c_int = torch.floor((b / 0.35815147) / s), torch.floor((1.0 / 0.35815147) / s**2)
    x = torch.maximum(x - x.amax(-1, keepdim=True), n * x0)
    octaves = torch.floor(x / x0)
    r = x - x0 * octaves
    e = torch.floor((r * (r + b_int) + c_int) * 2.0 ** (n - octaves)).clamp(min=0)
    ratio = torch.round(e.sum(-1, keepdim=True) / e)
    log = torch.floor(torch.log2(ratio))
    code = torch.where(ratio >= threshold * 2.0**log, log + 1, log)
    return torch.where(code >= 2**bits, -1.0, code).numpy().astype(np.int64)


def torch_int_layernorm(q, alpha, s_min, gamma, beta, s_out, mantissa_bits=8, from_base=False):
    q, gamma, beta = (torch.tensor(a, dtype=torch.float64) for a in (q, gamma, beta))
    s = s_min * 2.0 ** torch.tensor(alpha, dtype=torch.float64)
    s1 = torch.tensor(s_min, dtype=torch.float64) if from_base else s.min()
    x, channels = torch.round(q * s / s1), q.shape[-1]
    std = s1 / channels * torch.sqrt(channels * (x * x).sum(-1, keepdim=True) - x.sum(-1, keepdim=True) ** 2)
    mean = s1 * x.mean(-1, keepdim=True)
    a = s1 / std * gamma / s_out
    shift = (mantissa_bits - 1 - torch.floor(torch.log2(a.abs()))).clamp(0, 31)
    m = torch.floor(a.abs() * 2.0**shift).clamp(0, 2**mantissa_bits - 1)
    offset = torch.round((beta - mean / std * gamma) / s_out * 2.0**shift)
    return torch.round((a.sign() * m * x + offset) / 2.0**shift).numpy()


# --- Log-Int-Softmax ---

SCORES = [40, 12, 0, -3, -25, -60, -127, 39]


def test_softmax_published_vectors():
    assert published.log_int_softmax(SCORES, 0.0625).tolist() == [1, 4, 5, 5, 7, 9, 15, 1]
    fine = published.log_int_softmax([[100, 90, 80, 60, 20, -20, -100, -128]], fp32(0.05))
    assert fine.tolist() == [[1, 2, 3, 4, 7, 10, 15, -1]]
    assert fine.dtype == np.int64
    polynomial, shift = exponential_table(exponential_constants(0.0625), 30, 168)
    exponentials = [int(polynomial[40 - k]) << int(shift[40 - k]) for k in SCORES]
    assert exponentials == [
        766651662336,
        149786984448,
        74893492224,
        62008590336,
        17582522368,
        2340421632,
        47448064,
        721554505728,
    ]


def softmax_vectors():
    rng = np.random.default_rng(1)
    for scale in (0.002, 0.0123, 0.03, 0.05, 0.0625, 0.1, 0.17, 0.25, 0.5, 0.69, 0.7, 1.2, 1.67):
        for length, spread in ((1, 255), (2, 3), (7, 255), (50, 40), (197, 255), (197, 20)):
            yield rng.integers(-spread, spread + 1, (6, length)), fp32(scale)


@pytest.mark.parametrize(("bits", "n"), [(4, 30), (4, 20), (8, 30), (3, 10), (4, 0)])
def test_softmax_equals_float64(bits, n):
    count = 0
    for k, scale in softmax_vectors():
        expected = torch_log_int_softmax(k, scale, bits, n)
        assert mismatches(expected, published.log_int_softmax(k, scale, bits=bits, n=n)) == 0
        count += k.size
    assert count > 35_000


@pytest.mark.parametrize("corrupted", [{"ln2": 0.72}, {"b": 1.0}, {"threshold": 2**0.5}, {"n": 8}])
def test_softmax_comparison_sees_a_changed_constant(corrupted):
    assert sum(
        mismatches(torch_log_int_softmax(k, s, **corrupted), published.log_int_softmax(k, s))
        for k, s in softmax_vectors()
    )


@pytest.mark.parametrize("scale", [1e-8, 1e-5, 0.0021, 0.3])
@pytest.mark.parametrize("n", [30, 62])
def test_softmax_equals_fractions(scale, n):
    """Sums far beyond 64 bits: the same procedure on plain Python integers and fractions."""
    rng = np.random.default_rng(2)
    x0 = -int(-(Fraction(-0.6931) / Fraction(scale) // 1))
    b, c = int((0.96963238 / 0.35815147) / scale), int((1 / 0.35815147) / (scale * scale))
    for row in rng.integers(-255, 256, (20, 9)).tolist() + [[7] * 5, [7] * 6]:
        exponentials = []
        for k in row:
            x = max(k - max(row), n * x0)
            r = x - x0 * (x // x0)
            exponentials.append(max((r * (r + b) + c) * 2 ** (n - x // x0), 0))
        expected = []
        for e in exponentials:
            ratio = round(Fraction(sum(exponentials), e)) if e else 1 << 99
            binary = f"{ratio:b}0"
            code = len(binary) - 2 + (binary[1] == "1")
            expected.append(code if code < 16 else -1)
        assert published.log_int_softmax(row, scale, n=n).tolist() == expected


def test_softmax_rounds_ties_to_even_and_equal_rows():
    # Above a scale of ln 2 each score step halves: exponentials 1, 1, 1/2, so S/E is 2.5 -> 2 and 5.
    assert published.log_int_softmax([0, 0, -1], 0.75).tolist() == [1, 1, 2]
    assert published.log_int_softmax([0, 0, 0, -1], 0.75).tolist() == [2, 2, 2, 3]
    assert published.log_int_softmax([0, -1], 0.75).tolist() == [1, 2]
    assert [int(published.log_int_softmax([5] * n, 0.1)[0]) for n in (1, 2, 3, 4, 5, 6, 11, 12)] == list(
        map(int, "01222334")
    )
    assert published.log_int_softmax(np.full((2, 3, 1), 9), 0.1).tolist() == [[[0]] * 3] * 2
    assert published.log_int_softmax(np.zeros((0, 5), int), 0.1).shape == (0, 5)


# --- integer LayerNorm ---

GAMMA, BETA = [1, 0.5, -0.25, 0.75, 1, 0.125, 2, 1], [0, 0.25, 0, -0.5, 0.125, 0, 0, 0.0625]
ALPHA, CODES = [0, 1, 2, 3, 0, 0, 1, 2], [10, -20, 30, -5, 7, 100, -90, 3]


def test_layernorm_published_vector():
    Y = published.int_layernorm([CODES], ALPHA, 2**-6, GAMMA, BETA, 2**-5)
    assert Y.tolist() == [[4, 1, -11, -27, 7, 5, -131, 7]]
    assert Y.dtype == np.int64
    X = [k << a for k, a in zip(CODES, ALPHA, strict=True)]
    spread = 8 * sum(x * x for x in X) - sum(X) ** 2
    assert spread == 482223
    constants = [
        channel_constants(sum(X), spread, 8, float(g), float(b), 2**-5) for g, b in zip(GAMMA, BETA, strict=True)
    ]
    M, N, B = zip(*constants, strict=True)
    assert M == (188, 188, -188, 141, 188, 188, 188, 188)
    assert N == (9, 10, 11, 9, 9, 12, 8, 9)
    assert B == (260, 8452, -260, -7997, 2308, 260, 260, 1284)


def layernorm_vectors(count=12):
    rng = np.random.default_rng(3)
    for channels in (3, 8, 64, 192):
        for index in range(count):
            q = rng.integers(-255, 256, (20, channels)) // (1, 1, 20)[index % 3]
            alpha = rng.integers(index % 4, 4, channels)
            gamma = (rng.standard_normal(channels) * 10.0 ** rng.integers(-3, 2, channels)).astype(np.float32)
            gamma[index % channels] = 0
            beta = rng.standard_normal(channels).astype(np.float32)
            s_min, s_out = fp32(rng.uniform(1e-3, 0.1)), fp32(10.0 ** rng.uniform(-4, 0))
            # Zero variance has a test of its own: the released code has no result there.
            varied = np.ptp(q << alpha, axis=-1) > 0
            yield q[varied], alpha, s_min, gamma, beta, s_out


def test_layernorm_equals_float64():
    count = 0
    for vector in layernorm_vectors():
        assert mismatches(torch_int_layernorm(*vector), published.int_layernorm(*vector)) == 0
        count += vector[0].size
    assert count > 60_000


@pytest.mark.parametrize("corrupted", [{"mantissa_bits": 7}, {"mantissa_bits": 9}, {"from_base": True}])
def test_layernorm_comparison_sees_a_changed_constant(corrupted):
    assert sum(
        mismatches(torch_int_layernorm(*vector, **corrupted), published.int_layernorm(*vector))
        for vector in layernorm_vectors(4)
    )


def half_even(value: Decimal) -> int:
    return int(value.to_integral_value(rounding="ROUND_HALF_EVEN"))


finite32 = st.floats(width=32, min_value=-64, max_value=64, allow_subnormal=False)
positive32 = st.floats(width=32, min_value=2**-20, max_value=1024)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-255, 255), st.integers(0, 3), finite32, finite32), min_size=1, max_size=9),
    positive32,
)
def test_layernorm_equals_decimals(channels, s_out):
    q, alpha, gamma, beta = zip(*channels, strict=True)
    X = [k * 2 ** (a - min(alpha)) for k, a in zip(q, alpha, strict=True)]
    D = len(X) * sum(x * x for x in X) - sum(X) ** 2
    expected = []
    with localcontext() as context:
        context.prec = 300
        for x, g, b in zip(X, gamma, beta, strict=True):
            if D == 0:
                expected.append(half_even(Decimal(b) / Decimal(s_out)))
                continue
            # Where D is a square the root is an integer, and products of it below are exact.
            A, N = len(X) * abs(Decimal(g)) / (Decimal(D).sqrt() * Decimal(s_out)), 31
            while N and A * 2**N >= 256:
                N -= 1
            M = min(int(A * 2**N), 255)
            B = half_even(
                (Decimal(b) * Decimal(D) - sum(X) * Decimal(g) * Decimal(D).sqrt()) / (D * Decimal(s_out)) * 2**N
            )
            expected.append(half_even(Decimal(M * x * (1 if g > 0 else -1) + B) / 2**N))
    assert published.int_layernorm(q, alpha, 0.01, gamma, beta, s_out).tolist() == expected


def test_round_difference_equals_decimals():
    cases = itertools.product(range(-9, 10), range(-4, 5), range(10), range(1, 8))
    with localcontext() as context:
        context.prec = 60
        for p, root, radicand, divisor in cases:
            expected = half_even((p - root * Decimal(radicand).sqrt()) / divisor)
            assert round_difference(p, root, radicand, divisor) == expected


def test_mantissa_is_the_largest_and_the_shift_normalizes_it():
    rng = np.random.default_rng(4)
    for _ in range(2000):
        numerator, denominator = (int(rng.integers(1, 2**40)) << int(rng.integers(0, 60)) for _ in range(2))
        M, N = mantissa_and_shift(numerator, denominator)
        assert M * M * denominator <= numerator << 2 * N
        assert M == 255 or (M + 1) ** 2 * denominator > numerator << 2 * N
        assert M >= 128 or N == 31
        assert N in (0, 31) or (numerator << 2 * N) < denominator << 16
    assert mantissa_and_shift(0, 5) == (0, 31)
    assert mantissa_and_shift(1 << 14, 1) == (128, 0)
    assert mantissa_and_shift((1 << 14) - 1, 1) == (255, 1)


def test_layernorm_corner_rows():
    assert published.int_layernorm([[7, 7]], [2, 2], 0.1, [1, 3], [0.75, -1.25], 0.5).tolist() == [[2, -2]]
    assert published.int_layernorm([[7]], [3], 0.1, [1], [0.25], 0.5).tolist() == [[0]]
    # gamma 0: beta rounded to 31 fraction bits, then to an integer; 2.5 + 2**-33 is a tie by then.
    beta = [2.5 + 2.0**-33, 2.5 + 2.0**-31]
    assert published.int_layernorm([[1, 5]], [0, 0], 1, [0, 0], beta, 1).tolist() == [[2, 3]]
    # +-a has mean 0 and deviation a: exactly +-gamma/s_out, whatever the scale.
    for s_min in (0.1, 1.0, fp32(0.3)):
        assert published.int_layernorm([[9, -9] * 3], [0] * 6, s_min, [1] * 6, [0] * 6, 2**-4).tolist() == [
            [16, -16] * 3
        ]
    q, gamma, beta = np.arange(12).reshape(2, 6) ** 2, np.ones(6), np.full(6, 0.3)
    same = [published.int_layernorm(q, [alpha] * 6, 0.1, gamma, beta, 0.01) for alpha in range(4)]
    assert all(np.array_equal(same[0], other) for other in same)
    assert np.array_equal(published.int_layernorm(q[None], [0] * 6, 0.1, gamma, beta, 0.01), same[0][None])


def test_layernorm_has_no_float_noise():
    """A is exactly 16 and M = 128; float64 finds 15.99... and M = 127."""
    arguments = (np.array([[32, -32] * 25]), [0] * 50, fp32(0.1), [1] * 50, [0] * 50, 2**-9)
    assert published.int_layernorm(*arguments).tolist() == [[512, -512] * 25]
    assert torch_int_layernorm(*arguments).tolist() == [[508, -508] * 25]


# --- refusals ---

LAYERNORM = {"q": [[1, 2]], "alpha": [0, 3], "s_min": 0.1, "gamma": [1, 1], "beta": [0, 0], "s_out": 0.1}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: published.log_int_softmax([1], 0.0), "scale must be above 0"),
        (lambda: published.log_int_softmax([1], float("nan")), "scale must be above 0"),
        (lambda: published.log_int_softmax([1], float("inf")), "scale must be above 0"),
        (lambda: published.log_int_softmax([1], "x"), "scale must be one positive number"),
        (lambda: published.log_int_softmax([1], 1e-30), "scale must be at least"),
        (lambda: published.log_int_softmax([1], 1.68), "too coarse"),
        (lambda: published.log_int_softmax([1], 0.1, bits=9), "bits must be an integer between 1 and 8, not 9"),
        (lambda: published.log_int_softmax([1], 0.1, n=-1), "n must be an integer between 0 and 62"),
        (lambda: published.log_int_softmax([1.5], 0.1), "scores must hold integers"),
        (lambda: published.log_int_softmax([1 << 20], 0.1), "scores must be between"),
        (lambda: published.log_int_softmax(np.zeros((3, 0), int), 0.1), "at least one score"),
        (lambda: published.int_layernorm(**LAYERNORM | {"alpha": [0, 4]}), "alpha must be between 0 and 3"),
        (lambda: published.int_layernorm(**LAYERNORM | {"alpha": [0]}), r"alpha must have shape \(2,\)"),
        (lambda: published.int_layernorm(**LAYERNORM | {"gamma": [1]}), r"gamma must have shape \(2,\)"),
        (lambda: published.int_layernorm(**LAYERNORM | {"beta": [0, np.nan]}), r"beta must be finite.* index \(1,\)"),
        (lambda: published.int_layernorm(**LAYERNORM | {"s_min": -1}), "s_min must be above 0"),
        (lambda: published.int_layernorm(**LAYERNORM | {"s_out": 0}), "s_out must be above 0"),
        (lambda: published.int_layernorm(**LAYERNORM | {"q": 3}), "q must have tokens"),
        (lambda: published.int_layernorm(**LAYERNORM | {"beta": [1e30, 0], "s_out": 1e-9}), "s_out .* is too small"),
        (lambda: published.pts_factors([[1, np.inf]]), r"x must be finite.* index \(0, 1\)"),
        (lambda: published.pts_factors(np.zeros((0, 3))), "at least one value"),
        (lambda: published.pts_factors(["a"]), "real numbers"),
        (lambda: published.observe("max", [[1]]), "observer must be minmax, ema, percentile or omse, not 'max'"),
        (lambda: published.observe("ema", []), "at least one batch"),
        (lambda: published.observe("ema", [[1.0], []]), "batch 1 is empty"),
        (lambda: published.observe("omse", [[1.0], [np.nan]]), "batch 1 must be finite"),
        (lambda: published.adalog_tables(0, 20), "bits must be an integer between 1 and 8"),
        (lambda: published.adalog_tables(4, 138), "q must be an integer between 1 and 137"),
        (lambda: published.adalog_quantize([np.nan], 4, 20), "x must be finite"),
        (lambda: published.adalog_quantize([0.5], 4, 20, -1.0), "scale must be above 0"),
        (lambda: published.adalog_dequantize([16], 4, 20), "codes must be between -1 and 15"),
        (lambda: published.adalog_dequantize([0.5], 4, 20), "codes must hold integers"),
        (lambda: published.adalog_dequantize([True], 4, 20), "codes must hold integers"),
        (lambda: published.adalog_tables(True, 20), "bits must be an integer"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(HwsimError, match=message):
        call()
