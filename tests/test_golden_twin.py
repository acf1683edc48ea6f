"""Twin units against plain Python integers and fractions, and against the paper's quantizer on reals."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from golden.errors import HwsimError
from golden.requantize import RequantizeSpec
from golden.spec import IntFormat
from golden.twin import TwinLinearSpec, TwinMatmulSpec, TwinQuantizeSpec
from hwsim.quantize.quantizers.twin import ReleasedTwinSoftmaxGrid, TwinGelu, TwinGeluGrid, TwinSoftmaxGrid


def paper_code(p: Fraction, bits: int, shift: int) -> int:
    """Range and step of PTQ4ViT's post-softmax quantizer, selecting one range; Python rounds half to even."""
    half = 2 ** (bits - 1)
    coarse_step = Fraction(1, half)
    fine_step = coarse_step / 2**shift
    if p < half * fine_step:
        return min(round(p / fine_step), half - 1)
    return half + min(round(p / coarse_step), half - 1)


@given(st.integers(2, 8), st.integers(1, 20), st.data())
def test_codes_of_probabilities(bits: int, probability_bits: int, data: st.DataObject) -> None:
    shift = data.draw(st.integers(0, probability_bits))
    values = data.draw(st.lists(st.integers(0, 1 << probability_bits), min_size=1, max_size=20))
    spec = TwinQuantizeSpec(probability_bits=probability_bits, code_bits=bits)
    constants = spec.check_constants({"shift": np.array(shift)})
    expected = [paper_code(Fraction(value, 1 << probability_bits), bits, shift) for value in values]
    assert spec.compute(constants, np.array(values)).tolist() == expected
    # The fake-quantized network's grid gives the same codes.
    grid = TwinSoftmaxGrid(bits, shift)
    reals = torch.tensor(values, dtype=torch.float64) / 2**probability_bits
    assert grid.codes(reals).tolist() == expected


def test_every_code_and_both_ends() -> None:
    spec = TwinQuantizeSpec(probability_bits=12, code_bits=4)
    constants = spec.check_constants({"shift": np.array(3)})
    codes = spec.compute(constants, np.arange((1 << 12) + 1))
    assert set(codes.tolist()) == set(range(8)) | set(range(9, 16))  # coarse code 0 lies in the fine range
    assert codes[0] == 0 and codes[-1] == 15
    assert codes[511] == 7 and codes[512] == 8 + 1  # the split 2**-3


def test_a_shift_beyond_the_probability_is_refused() -> None:
    spec = TwinQuantizeSpec(probability_bits=6, code_bits=4)
    with pytest.raises(HwsimError, match="shift 7 exceeds probability_bits 6"):
        spec.check_constants({"shift": np.array(7)})


def requantize(bits: int, channels: int = 1) -> RequantizeSpec:
    return RequantizeSpec(
        input=IntFormat(bits, signed=True), output_bits=12, multiplier_bits=8, shift_bits=6, channels=channels
    )


def test_product_of_both_ranges() -> None:
    rng = np.random.default_rng(0)
    shift, zero = 5, np.array([9, 100])
    spec = TwinMatmulSpec(code_bits=5, value_bits=8, row_length=7, heads=2, requantize=requantize(30, 2))
    constants = spec.check_constants(
        {
            "range_shift": np.array(shift),
            "zero_v": zero,
            "multiplier": np.array([3, 5]),
            "shift": np.array([9, 10]),
            "zero_point": np.array(700),
        }
    )
    codes, values = rng.integers(0, 32, (2, 2, 3, 7)), rng.integers(0, 256, (2, 2, 7, 4))
    out = spec.compute(constants, codes, values)
    for image, head, row, column in np.ndindex(out.shape):
        total = 0
        for k in range(7):
            code = int(codes[image, head, row, k])
            weight = code if code < 16 else (code - 16) * 2**shift
            total += weight * (int(values[image, head, k, column]) - int(zero[head]))
        exact = Fraction(total * [3, 5][head], 2 ** [9, 10][head]) + 700
        assert out[image, head, row, column] == min(max(round(exact), 0), 4095)


def test_an_accumulator_too_narrow_is_refused() -> None:
    spec = TwinMatmulSpec(code_bits=5, value_bits=8, row_length=7, requantize=requantize(12))
    with pytest.raises(HwsimError, match="twin_matmul: the accumulator could overflow"):
        spec.check_constants(
            {
                "range_shift": np.array(5),
                "zero_v": np.array(128),
                "multiplier": np.array([3]),
                "shift": np.array([9]),
                "zero_point": np.array(0),
            }
        )
    with pytest.raises(HwsimError, match="one channel a head"):
        TwinMatmulSpec(code_bits=5, value_bits=8, row_length=7, heads=3, requantize=requantize(12))


@pytest.mark.parametrize(("negative", "positive"), [(0, 4), (3, 0), (0, 0)])
def test_linear_behind_signed_twin_codes(negative: int, positive: int) -> None:
    rng = np.random.default_rng(1)
    spec = TwinLinearSpec(
        input_features=6,
        output_features=3,
        input_bits=4,
        weight_bits=5,
        bias_bits=10,
        requantize=requantize(24),
    )
    weight, bias = rng.integers(-16, 16, (3, 6)), rng.integers(-500, 500, 3)
    constants = spec.check_constants(
        {
            "weight": weight,
            "bias": bias,
            "shift_negative": np.array(negative),
            "shift_positive": np.array(positive),
            "multiplier": np.array([200]),
            "shift": np.array([8]),
            "zero_point": np.array(2000),
        }
    )
    codes = rng.integers(0, 16, (5, 6))
    out = spec.compute(constants, codes)
    for row, output in np.ndindex(out.shape):
        total = int(bias[output])
        for k in range(6):
            signed = int(codes[row, k]) - 8
            total += int(weight[output, k]) * signed * (2**negative if signed < 0 else 2**positive)
        assert out[row, output] == min(max(round(Fraction(total * 200, 256) + 2000), 0), 4095)


def test_gelu_grid_selects_by_sign_and_names_a_ratio_that_no_program_has() -> None:
    grid = TwinGelu(4).grid(0.05)
    x = torch.tensor([-1.0, -0.17, -0.011, -0.001, 0.0, 0.02, 0.1, 5.0])
    step = 0.16997124254703522 / 8
    assert grid.negative == pytest.approx(step) and grid.positive == pytest.approx(2 * step) and grid.shift == 1
    signed = [-8, -8, -1, 0, 0, 0, 2, 7]
    assert (grid.codes(x) - 8).tolist() == signed
    assert grid.values(grid.codes(x)).tolist() == pytest.approx([s * (step if s < 0 else 2 * step) for s in signed])
    with pytest.raises(HwsimError, match="without --as-released"):
        _ = TwinGeluGrid(0.01, 0.03, 4).shift


def test_the_released_softmax_quantizer_adds_both_ranges() -> None:
    """algorithms 2.2: with a split of 2**-4 every output is about 0.063 too big."""
    grid = ReleasedTwinSoftmaxGrid(8, 4)
    x = torch.tensor([0.0, 0.01, 0.25, 0.9], dtype=torch.float64)
    high = (x.clamp(2**-4, 1) * 127).round() / 127
    low = (x.clamp(0, 2**-4) * 127 * 16).round() / 127 / 16
    torch.testing.assert_close(grid.values(grid.codes(x)), high + low)
    assert (grid.values(grid.codes(x)) - x).mean() == pytest.approx(0.0625, abs=0.003)
