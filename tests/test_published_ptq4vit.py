"""PTQ4ViT's and Q-ViT's released quantizers against Fractions, against the units, and against the trained network."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from golden.errors import HwsimError
from golden.published import (
    GELU_SHIFT,
    lsq_dequantize,
    lsq_quantize,
    lsq_range,
    rectify,
    symmetric_quantize,
    twin_gelu,
    twin_softmax,
)
from golden.twin import TwinQuantizeSpec
from hwsim.quantize.lsq import lsq

scales = st.floats(2**-12, 16, width=32)
values = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20)
probabilities = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20)


def clip(code, first, last):
    return min(max(code, first), last)


def quotient(x, scale):
    return Fraction(x) / Fraction(scale)


@given(values, st.integers(2, 8), scales)
def test_symmetric_codes_are_those_of_fractions(x, bits, scale):
    half = 1 << (bits - 1)
    expected = [clip(round(quotient(value, scale)), -half, half - 1) for value in x]
    assert symmetric_quantize(x, bits, scale).tolist() == expected


def test_ties_go_to_the_even_code():
    step = float(np.float32(0.1))
    assert symmetric_quantize([2.5 * step, 3.5 * step, -0.5 * step, -1.5 * step], 8, step).tolist() == [2, 4, 0, -2]
    assert lsq_quantize([0.5, 1.5, 2.5], 4, 1.0, 1.0, signed=False).tolist() == [2, 2, 4]  # 1.5, 2.5, 3.5
    assert symmetric_quantize([1e30, -1e30], 8, 2**-10).tolist() == [127, -128]


@given(probabilities, st.integers(2, 8), st.integers(0, 12))
def test_the_papers_twin_softmax_takes_one_range(p, bits, split):
    half = 1 << (bits - 1)
    expected = []
    for value in p:
        step = Fraction(1, half << split if value < 2.0**-split else half)
        expected.append(float(min(round(Fraction(value) / step), half - 1) * step))
    assert twin_softmax(p, bits, split).tolist() == expected


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("split", [0, 1, 5, 9])
def test_the_unit_gives_the_papers_values(bits, split):
    p = np.arange((1 << 16) + 1)
    spec = TwinQuantizeSpec(probability_bits=16, code_bits=bits)
    codes = spec.compute(spec.check_constants({"shift": np.array(split)}), p).astype(np.int64)
    half = 1 << (bits - 1)
    steps = np.where(codes < half, 1.0 / (half << split), 1.0 / half)
    assert np.array_equal((codes % half) * steps, twin_softmax(p / 65536, bits, split))


@given(probabilities, st.integers(2, 8), st.integers(0, 12))
def test_the_released_twin_softmax_adds_both_ranges(p, bits, split):
    last, border = (1 << (bits - 1)) - 1, Fraction(1, 1 << split)
    expected = []
    for value in map(Fraction, p):
        high = clip(round(clip(value, border, 1) * last), 0, last) / last
        low = clip(round(clip(value, 0, border) * (last << split)), 0, last) * float(Fraction(1, last << split))
        expected.append(high + low)
    assert twin_softmax(p, bits, split, as_released=True).tolist() == expected


def test_the_released_sum_is_too_large_by_the_split():
    p = np.linspace(0, 1, 1001)
    assert np.median(twin_softmax(p, 8, 4, as_released=True) - p) == pytest.approx(2**-4, abs=1e-3)
    assert np.median(twin_softmax(p, 8, 8, as_released=True) - p) == pytest.approx(2**-8, abs=1e-3)
    assert abs(twin_softmax(p, 8, 4) - p).max() <= 1 / 128


@given(st.lists(st.floats(-0.171875, 20, width=32), min_size=1, max_size=20), st.integers(2, 8), scales)
def test_twin_gelu_is_that_of_fractions(x, bits, step):
    half = 1 << (bits - 1)
    negative = GELU_SHIFT / half
    expected = [
        clip(round(quotient(value, step)), 0, half - 1) * step
        + clip(round(quotient(value, negative)), -half, 0) * negative
        for value in x
    ]
    assert twin_gelu(x, bits, step).tolist() == expected


@given(values, st.integers(2, 8), scales, st.floats(-3, 12, width=32), st.booleans())
def test_lsq_codes_are_those_of_fractions(x, bits, scale, zero, signed):
    first, last = lsq_range(bits, signed=signed)
    expected = [round(clip(quotient(value, scale) + round(zero), first, last)) for value in x]
    codes = lsq_quantize(x, bits, scale, zero, signed=signed)
    assert codes.tolist() == expected
    assert lsq_dequantize(codes, scale, zero).tolist() == [(code - round(zero)) * scale for code in expected]


@pytest.mark.parametrize(
    ("bits", "zero", "signed"), [(2, 0.0, True), (4, 0.0, True), (2, 1.4, False), (8, 97.0, False)]
)
def test_the_trained_network_computes_the_published_codes(bits, zero, signed):
    """Powers of two as steps, so that float32 is exact."""
    x = np.random.default_rng(bits).normal(0, 2, 5000).astype(np.float32)
    first, last = lsq_range(bits, signed=signed)
    got = lsq(torch.from_numpy(x), torch.tensor(0.25), first, last, torch.tensor(zero)).numpy()
    assert np.array_equal(got, lsq_dequantize(lsq_quantize(x, bits, 0.25, zero, signed=signed), 0.25, zero))


def test_rectification_is_the_layernorm_of_torch():
    random = np.random.default_rng(0)
    x, gamma, beta = random.normal(1, 3, (2, 5, 16)), random.normal(size=16), random.normal(size=16)
    expected = torch.nn.functional.layer_norm(
        *map(torch.from_numpy, (x,)), (16,), *map(torch.from_numpy, (gamma, beta))
    )
    np.testing.assert_allclose(rectify(x, gamma, beta), expected.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: symmetric_quantize([0.0], 1, 1.0), "bits must be an integer between 2 and 16, not 1"),
        (lambda: symmetric_quantize([float("nan")], 8, 1.0), "x must be finite"),
        (lambda: twin_softmax([0.5], 8, 41), "split must be an integer between 0 and 40, not 41"),
        (lambda: twin_gelu([0.5], 8, 0.0), "positive_step must be above 0"),
        (lambda: lsq_quantize([0.5], 8, -1.0), "scale must be above 0"),
        (lambda: lsq_quantize([0.5], 8, 1.0, 1e9), "zero_point must be between"),
        (lambda: rectify(np.zeros((2, 4)), np.ones(3), np.ones(4)), r"must have shape \(4,\), not \(3,\)"),
    ],
)
def test_bad_arguments(call, said):
    with pytest.raises(HwsimError, match=said):
        call()
