"""LayerNorm of golden against plain Python integers, Fractions and Decimals written independently."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from golden import published
from golden.errors import HwsimError
from golden.layernorm import LayerNormSpec


def layernorm_of(spec, constants, codes):
    """One row by the formula of the spec, in Python integers and Fractions."""
    zero, f = int(constants["zero_in"]), int(constants["fraction_bits"])
    alpha, gamma, beta = (constants[name].tolist() for name in ("alpha", "gamma", "beta"))
    x = [(q - zero) * 2**a for q, a in zip(codes, alpha, strict=True)]
    s1, s2 = sum(x), sum(value * value for value in x)
    d = len(x) * s2 - s1 * s1
    m = e = 0
    if d:
        half = -(-d.bit_length() // 2)
        leading = d * 4 ** (spec.radicand_bits // 2) // 4**half
        # the largest m of mantissa_bits bits with m * m * leading <= 2**(radicand_bits + 2 * (mantissa_bits - 1))
        m = min(
            math.isqrt(2 ** (spec.radicand_bits + 2 * (spec.mantissa_bits - 1)) // leading), 2**spec.mantissa_bits - 1
        )
        e = spec.mantissa_bits - 1 + half
    y = [
        round(Fraction(g * m * (len(x) * value - s1) + b * 2**e, 2 ** (e + f)))
        for g, b, value in zip(gamma, beta, x, strict=True)
    ]
    return [min(max(value, 0), 2**spec.output_bits - 1) for value in y]


def layernorm_spec(**changes):
    fields = {
        "channels": 24, "input_bits": 8, "output_bits": 8, "alpha_bits": 2, "mantissa_bits": 12,
        "radicand_bits": 16, "gamma_bits": 14, "beta_bits": 20,
    }  # fmt: skip
    return LayerNormSpec(**(fields | changes))


def layernorm_constants(spec, random, fraction_bits=9, zero_in=None):
    c = spec.channels
    gamma, beta = 2 ** (spec.gamma_bits - 1), 2 ** (spec.beta_bits - 1)
    return spec.check_constants(
        {
            "zero_in": np.array(random.integers(0, 2**spec.input_bits) if zero_in is None else zero_in),
            "alpha": random.integers(0, 1 << spec.alpha_bits, c),
            "gamma": random.integers(-gamma, gamma, c),
            "beta": random.integers(-beta, beta, c),
            "fraction_bits": np.array(fraction_bits),
        }
    )


def test_layernorm_equals_python_integers():
    random = np.random.default_rng(0)
    spec = layernorm_spec()
    for _ in range(20):
        constants = layernorm_constants(spec, random)
        rows = random.integers(0, 256, (2, 3, spec.channels))
        expected = [[layernorm_of(spec, constants, row) for row in batch] for batch in rows.tolist()]
        result = spec.compute(constants, rows.astype(np.uint8))
        assert result.tolist() == expected
        assert result.dtype == np.uint8


@settings(max_examples=150)
@given(st.data())
def test_layernorm_of_random_specs_never_overflows(data):
    """Corner rows and corner constants of any spec that is accepted, against unbounded Python integers."""
    integers = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    try:
        spec = LayerNormSpec(
            channels=integers(1, 40) if integers(0, 3) else 300,
            input_bits=integers(1, 16),
            output_bits=integers(1, 16),
            alpha_bits=integers(0, 3),
            mantissa_bits=integers(4, 24),
            radicand_bits=2 * integers(2, 16),
            gamma_bits=integers(2, 24),
            beta_bits=integers(2, 40),
        )
    except HwsimError:
        assume(False)
    assert max(spec.numerator_bits, spec.variance_bits) <= 62
    c = spec.channels
    draw = np.random.default_rng(integers(0, 2**32)).choice
    format = spec.constants
    corners = {name: draw([format[name].format.minimum, format[name].format.maximum], c) for name in ("gamma", "beta")}
    constants = {
        **corners,
        "alpha": draw([0, (1 << spec.alpha_bits) - 1], c),
        "zero_in": draw([format["zero_in"].format.minimum, 0, format["zero_in"].format.maximum]),
        "fraction_bits": np.array(integers(0, 31)),
    }
    if spec.largest_exponent + int(constants["fraction_bits"]) > 63:
        with pytest.raises(HwsimError, match=r"fraction_bits .* above 63"):
            spec.check_constants(constants)
        return
    constants = spec.check_constants(constants)
    top = spec.input.maximum
    rows = draw([0, 1, top], (6, c))
    rows[0], rows[1], rows[2] = 0, top, np.where(np.arange(c) == 0, top, 0)
    expected = [layernorm_of(spec, constants, row) for row in rows.tolist()]
    assert spec.compute(constants, rows.astype(spec.input.dtype)).tolist() == expected


def test_layernorm_of_equal_values_is_beta():
    spec = layernorm_spec(channels=6, alpha_bits=0)
    constants = layernorm_constants(spec, np.random.default_rng(5), fraction_bits=2)
    constants["beta"] = np.array([0, 2, 6, 10, -7, 4000])  # in quarters: 0, 0.5, 1.5, 2.5, -1.75, 1000
    for code in (0, 17, 255):
        assert spec.compute(constants, np.full((1, 6), code, np.uint8)).tolist() == [[0, 0, 2, 2, 0, 255]]


def test_layernorm_of_one_channel_is_beta():
    spec = layernorm_spec(channels=1)
    constants = layernorm_constants(spec, np.random.default_rng(6), fraction_bits=4)
    constants["beta"] = np.array([16 * 77])
    assert spec.compute(constants, np.array([[0], [255]], np.uint8)).tolist() == [[77]] * 2


def test_layernorm_of_the_smallest_variance():
    # two channels one code apart: D = 1, and the normalised values are -1 and 1
    spec = layernorm_spec(channels=2, alpha_bits=0)
    constants = layernorm_constants(spec, np.random.default_rng(7), fraction_bits=4)
    constants |= {"gamma": np.array([16 * 20, 16 * 30]), "beta": np.array([16 * 100] * 2)}
    assert spec.compute(constants, np.array([[8, 9], [9, 8]], np.uint8)).tolist() == [[80, 130], [120, 70]]


def test_layernorm_takes_a_last_shift_of_63():
    spec = layernorm_spec(channels=16, mantissa_bits=20, beta_bits=25)
    fraction_bits = 63 - spec.largest_exponent
    assert fraction_bits < 31
    random = np.random.default_rng(8)
    constants = layernorm_constants(spec, random, fraction_bits)
    constants["beta"] = np.full(16, 2**24 - 1)
    rows = random.choice([0, 255], (20, 16))
    expected = [layernorm_of(spec, constants, row) for row in rows.tolist()]
    assert spec.compute(constants, rows.astype(np.uint8)).tolist() == expected
    with pytest.raises(HwsimError, match="make a last shift of up to 64, above 63"):
        layernorm_constants(spec, random, fraction_bits + 1)


@pytest.mark.parametrize(("mantissa_bits", "radicand_bits"), [(8, 8), (12, 16), (16, 24)])
def test_layernorm_is_near_the_real_one(mantissa_bits, radicand_bits):
    """Half a code for the one rounding, and the documented error of the reciprocal square root on top."""
    random = np.random.default_rng(1)
    spec = layernorm_spec(
        channels=32, mantissa_bits=mantissa_bits, radicand_bits=radicand_bits, output_bits=16, gamma_bits=16
    )
    worst = Decimal(0)
    with localcontext() as context:
        context.prec = 50
        relative = max(Decimal(2) ** (1 - mantissa_bits), Decimal(2) ** (1 - radicand_bits))
        for _ in range(30):
            constants = layernorm_constants(spec, random, fraction_bits=8)
            constants["beta"] = np.full(32, 2**15 << 8)  # the middle of the codes, so that none saturates
            codes = random.integers(0, 256, 32)
            x = [
                Decimal((q - int(constants["zero_in"])) << a)
                for q, a in zip(codes.tolist(), constants["alpha"].tolist(), strict=True)
            ]
            mean = sum(x) / 32
            deviation = (sum((value - mean) ** 2 for value in x) / 32).sqrt()
            result = spec.compute(constants, codes[None].astype(np.uint8))[0].tolist()
            for y, value, gamma in zip(result, x, constants["gamma"].tolist(), strict=True):
                scaled = (value - mean) / deviation * gamma / 256
                error = abs(y - (scaled + 2**15))
                assert error <= Decimal("0.5") + abs(scaled) * relative
                worst = max(worst, error)
    assert worst > Decimal("0.45")


def test_layernorm_is_at_least_as_accurate_as_the_released_form():
    random = np.random.default_rng(2)
    channels, s_min, s_out, f = 192, 2.0**-6, 2.0**-5, 9
    spec = layernorm_spec(channels=channels, gamma_bits=16, beta_bits=24)
    gamma = random.normal(1, 0.3, channels).astype(np.float32)
    beta = random.normal(0, 0.3, channels).astype(np.float32)
    alpha = random.integers(0, 4, channels)
    codes = np.clip(np.round(random.normal(128, 30, (40, channels))), 0, 255).astype(np.uint8)
    constants = spec.check_constants(
        {
            "zero_in": np.array(128),
            "alpha": alpha,
            "gamma": np.rint(gamma / s_out * 2**f).astype(int),
            "beta": np.rint((beta / s_out + 128) * 2**f).astype(int),
            "fraction_bits": np.array(f),
        }
    )
    q = codes.astype(int) - 128
    x = q * 2.0**alpha
    exact = ((x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) * gamma + beta) / s_out
    inside = (exact > -127) & (exact < 126)
    ours = (spec.compute(constants, codes) - 128.0 - exact)[inside]
    released = (published.int_layernorm(q, alpha, s_min, gamma, beta, s_out) - exact)[inside]
    assert np.sqrt(np.mean(ours**2)) < np.sqrt(np.mean(released**2))
    assert np.abs(ours).max() < np.abs(released).max()
    assert np.abs(ours).max() < 0.55


def test_layernorm_without_factors_refuses_factors():
    spec = layernorm_spec(channels=2, alpha_bits=0)
    constants = dict(layernorm_constants(spec, np.random.default_rng(0)))
    with pytest.raises(HwsimError, match="alpha must be 0 everywhere when alpha_bits is 0"):
        spec.check_constants(constants | {"alpha": np.array([0, 1])})
