"""`golden.published`: RepQ-ViT, and AdaLog behind GELU, against Fractions, decimals and torch in float64."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch

from golden import published
from golden.errors import HwsimError

RNG = np.random.default_rng(12)


def fp32(value):
    return float(np.float32(value))


# --- uniform ---


@pytest.mark.parametrize(("bits", "zero_point"), [(3, 4), (4, 7), (4, 0), (4, 15), (8, 131), (4, -9), (4, 40), (1, 1)])
def test_asymmetric_codes_equal_fractions(bits, zero_point):
    scale = fp32(0.0371)
    halves = (np.arange(-40, 41) + 0.5) * scale  # next to ties, some of them exact
    x = np.concatenate(
        [RNG.normal(0, 10 * scale, 500), halves, np.nextafter(halves, 9), np.nextafter(halves, -9), [1e30, -1e30]]
    )
    expected = [min(max(round(Fraction(value) / Fraction(scale)) + zero_point, 0), 2**bits - 1) for value in x.tolist()]
    codes = published.asymmetric_quantize(x, bits, scale, zero_point)
    assert codes.tolist() == expected
    values = published.asymmetric_dequantize(codes, bits, scale, zero_point)
    assert values.tolist() == [(code - zero_point) * scale for code in expected]
    assert published.asymmetric_quantize(x, bits, scale * 1.001, zero_point).tolist() != expected


def test_asymmetric_ties():
    x = [-1.5, -0.5, 0.5, 1.5, 2.5]
    assert published.asymmetric_quantize(x, 4, 1.0, 7).tolist() == [5, 7, 7, 9, 9]
    assert published.asymmetric_quantize(x, 4, 1.0, 8).tolist() == [6, 8, 8, 10, 10]
    # The zero point in front of the rounding, as FQ-ViT has it, differs where it is odd.
    assert torch.round(torch.tensor(x) + 7).tolist() == [6, 6, 8, 8, 10]
    assert published.asymmetric_quantize(np.zeros((0, 2)), 4, 1.0, 3).shape == (0, 2)


# --- log-sqrt2 ---


def exact_log_sqrt2(x, bits, scale):
    """By logarithms of 60 digits."""
    codes = []
    with localcontext() as context:
        context.prec = 60
        for value in x:
            if value <= 0:
                codes.append(-1)
                continue
            position = -2 * (Decimal(value) / Decimal(scale)).ln() / Decimal(2).ln()
            code = max(int(position.to_integral_value(rounding="ROUND_HALF_EVEN")), 0)
            codes.append(code if code < 2**bits else -1)
    return codes


@pytest.mark.parametrize(("bits", "scale"), [(2, 1.0), (3, 0.37), (4, 0.9), (6, 1.0), (8, 2.5)])
def test_log_sqrt2_codes_equal_decimals(bits, scale):
    scale = fp32(scale)
    thresholds = scale * 2.0 ** (-(2 * np.arange(2**bits) + 1) / 4)
    x = np.concatenate(
        [
            RNG.uniform(-0.1, 1.2, 200) * scale,
            thresholds,
            np.nextafter(thresholds, 0),
            np.nextafter(thresholds, 9),
            [0, 7],
        ]
    )
    expected = exact_log_sqrt2(x.tolist(), bits, scale)
    assert published.log_sqrt2_quantize(x, bits, scale).tolist() == expected
    assert published.log_sqrt2_quantize(x * (1 + 1e-12), bits, scale).tolist() != expected
    assert set(range(2**bits)) | {-1} == set(expected)


def test_log_sqrt2_values_are_those_of_the_released_code():
    codes = torch.arange(16)
    even = torch.where(codes % 2 == 1, torch.tensor(2.0, dtype=torch.float64).sqrt(), 1.0)
    released = torch.exp2(-torch.ceil(codes.double() / 2)) * even * 0.75
    values = published.log_sqrt2_dequantize(np.append(codes.numpy(), -1), 4, 0.75)
    assert values.tolist() == [*released.tolist(), 0.0]
    # Code u stands for 2**(-u/2).
    np.testing.assert_allclose(values[:16], 0.75 * 2.0 ** (-np.arange(16) / 2), rtol=1e-15)
    assert published.log_sqrt2_quantize(values, 4, 0.75).tolist() == [*range(16), -1]


# --- AdaLog behind GELU ---


def test_the_shift_is_the_minimum_of_gelu():
    x = torch.linspace(-0.76, -0.74, 200_001, dtype=torch.float64)
    least = torch.nn.functional.gelu(x).min()
    assert float(least) == pytest.approx(-published.GELU_SHIFT, abs=5e-8)


@pytest.mark.parametrize(("bits", "q"), [(3, 40), (4, 20), (4, 37)])
def test_shifted_codes_and_the_bias_behind_them(bits, q):
    scale = 3.25
    x = torch.nn.functional.gelu(torch.from_numpy(RNG.normal(0, 2, (50, 30)))).numpy()
    codes = published.shifted_adalog_quantize(x, bits, q, scale)
    ratio = (torch.from_numpy(x) + 0.16997124254703522) / scale
    u = torch.round(-torch.log2(ratio.clamp(1e-15, 1)) * 37 / q)
    assert codes.tolist() == torch.where(u < 2**bits, u, -1).int().tolist()
    assert (codes == -1).any() and (codes >= 0).any()
    values = published.shifted_adalog_dequantize(codes, bits, q, scale)
    assert (values[codes == -1] == -0.16997124254703522).all()
    # A layer that reads them without the shift gives the same with the other bias.
    weight, bias = RNG.normal(size=(7, 30)), RNG.normal(size=7)
    unshifted = published.adalog_dequantize(codes, bits, q, scale)
    moved = unshifted @ weight.T + published.shifted_bias(bias, weight)
    np.testing.assert_allclose(moved, values @ weight.T + bias, atol=1e-12)
    assert np.abs(unshifted @ weight.T + bias - moved).max() > 0.1


# --- reparameterization ---


def layernorm(x, gamma, beta):
    return torch.nn.functional.layer_norm(torch.from_numpy(x), x.shape[-1:], eps=1e-6).numpy() * gamma + beta


def test_reparameterization_keeps_the_network_and_the_codes():
    channels, bits = 12, 4
    x = RNG.normal(0, 3, (40, channels))
    gamma, beta = RNG.lognormal(0, 0.5, channels), RNG.normal(0, 0.5, channels)
    weight, bias = RNG.normal(size=(5, channels)), RNG.normal(size=5)
    scale, zero_point = RNG.uniform(0.1, 0.6, channels), RNG.integers(3, 12, channels)
    found = published.reparameterize(gamma, beta, weight, bias, scale, zero_point)
    assert found.scale == pytest.approx(sum(scale.tolist()) / channels)
    assert found.zero_point == pytest.approx(sum(zero_point.tolist()) / channels)
    before, after = layernorm(x, gamma, beta), layernorm(x, found.gamma, found.beta)
    np.testing.assert_allclose(after @ found.weight.T + found.bias, before @ weight.T + bias, atol=1e-10)
    # The position of a value among the codes is that of its channel's own quantizer, unrounded.
    np.testing.assert_allclose(after / found.scale + found.zero_point, before / scale + zero_point, atol=1e-10)
    own = [published.asymmetric_quantize(before[:, c], bits, scale[c], int(zero_point[c])) for c in range(channels)]
    shared = np.clip(np.rint(after / found.scale + found.zero_point), 0, 15)
    assert (np.stack(own, axis=1) == shared).mean() > 0.99
    # In the words of AdaLog's released code.
    r = scale / found.scale
    b = -zero_point * scale / r + found.zero_point * found.scale
    np.testing.assert_allclose(found.beta, beta / r - b, atol=1e-12)
    np.testing.assert_allclose(found.bias, bias + (weight * r) @ b, atol=1e-12)


def test_reparameterization_with_round_numbers():
    found = published.reparameterize([4, 6], [1, 2], [[1, 2]], [10], [1, 3], [2, 4])
    assert found.gamma.tolist() == [8, 4]
    assert found.beta.tolist() == [(1 - 1) * 2, (2 + 3) / 1.5]
    assert found.weight.tolist() == [[0.5, 3]]
    assert found.bias.tolist() == [10 - (-1 + 2 * 3)]
    assert (found.scale, found.zero_point) == (2, 3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: published.asymmetric_quantize([np.nan], 4, 1.0, 0), "x must be finite"),
        (lambda: published.asymmetric_quantize([0], 17, 1.0, 0), "bits must be an integer between 1 and 16"),
        (lambda: published.asymmetric_dequantize([16], 4, 1.0, 0), "codes must be between 0 and 15"),
        (lambda: published.log_sqrt2_quantize([0.5], 4, 0.0), "scale must be above 0"),
        (lambda: published.log_sqrt2_dequantize([-2], 4, 1.0), "codes must be between -1 and 15"),
        (lambda: published.shifted_bias([1, 2], [[1, 2]]), "bias and weight must have shapes"),
        (lambda: published.reparameterize([1], [1], [[1, 2]], [1], [1, 1], [0, 0]), "gamma must have shape"),
        (lambda: published.reparameterize([1], [1], [[1]], [1], [0], [0]), "scale must be above 0"),
    ],
)
def test_arguments_out_of_range(call, said):
    with pytest.raises(HwsimError, match=said):
        call()
