"""Random units of every kind with constants and inputs, for the tests of the executors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from random_programs import sums_of

from golden.accumulate import signed_bits
from golden.adalog import (
    AdaLogMatmulSpec,
    AdaLogQuantizeSpec,
    adalog_tables,
    adalog_thresholds,
    lossless_guard_bits,
    probability_scale,
)
from golden.adalog_linear import AdaLogLinearSpec
from golden.add import AddSpec
from golden.asymmetric_linear import AsymmetricLinearSpec
from golden.errors import HwsimError
from golden.layernorm import LayerNormSpec
from golden.linear import LinearSpec
from golden.log2_matmul import Log2MatmulSpec
from golden.log_softmax import LogSoftmaxSpec, exponential_constants
from golden.log_sqrt2 import LogSqrt2LinearSpec, LogSqrt2MatmulSpec
from golden.lookup import LookupSpec
from golden.matmul import MatmulSpec
from golden.requantize import RequantizeSpec
from golden.softmax import SoftmaxSpec
from golden.spec import IntFormat, Spec
from golden.twin import TwinLinearSpec, TwinMatmulSpec, TwinQuantizeSpec

Case = tuple[Spec, dict[str, np.ndarray], tuple[np.ndarray, ...]]


def width(rng: np.random.Generator, low: int, usual: int, widest: int) -> int:
    """Mostly one of the usual ones, now and then a wider one."""
    return int(rng.integers(low, usual + 1) if rng.random() < 0.75 else rng.integers(usual + 1, widest + 1))


def requantizer(
    rng: np.random.Generator, bits: int, channels: int = 1, spare: int = 0
) -> tuple[RequantizeSpec, dict[str, np.ndarray]]:
    spec = RequantizeSpec(
        input=IntFormat(bits, signed=True),
        output_bits=width(rng, 1, 10, 16),
        multiplier_bits=int(rng.integers(1, min(31, 62 - spare - bits) + 1)),
        shift_bits=6,
        channels=channels,
    )
    top = 1 << spec.output_bits
    whole = bits + spec.multiplier_bits - spec.output_bits
    return spec, {
        "multiplier": rng.integers(0, 1 << spec.multiplier_bits, channels),
        # Shifts that bring typical sums near the output range, and now and then 0.
        "shift": np.where(
            rng.random(channels) < 0.1, 0, np.clip(whole - rng.integers(-1, 9, channels), 0, 61 - spec.output_bits)
        ),
        "zero_point": np.array(rng.integers(-top, top)),
    }


def suited(rng: np.random.Generator, case: Case) -> Case:
    """Mostly with shifts and a zero point that spread the sums over the codes: sums are far below their bounds."""
    spec, constants, inputs = case
    channels = constants["multiplier"].size
    if rng.random() < 0.25:
        return case
    checked = spec.check_constants(constants)
    sums = sums_of(spec, checked, [form.check(array, "input") for form, array in zip(spec.inputs, inputs, strict=True)])
    if channels > 1 and hasattr(spec, "heads"):
        sums = sums.swapaxes(-3, -1)
    low, high = np.quantile(sums.reshape(-1, channels), [0.05, 0.95], axis=0)
    top = float(1 << spec.output.bits)
    wanted = top * 2 ** rng.uniform(-1, 1, channels) / np.maximum(high - low, 1)
    # A zero point has one bit besides those of the codes.
    wanted = np.minimum(wanted, 1.3 * top / (abs(high + low) / 2 + 1))
    multiplier = np.maximum(constants["multiplier"], 1)
    shift = np.clip(np.round(np.log2(multiplier / wanted)), 0, 61 - spec.output.bits).astype(int)
    zero = np.median(top / 2 - (high + low) / 2 * np.ldexp(multiplier.astype(float), -shift))
    zero_point = np.array(int(np.clip(zero + top / 8 * rng.uniform(-1, 1), -top, top - 1)))
    return spec, constants | {"multiplier": multiplier, "shift": shift, "zero_point": zero_point}, inputs


def linear(rng: np.random.Generator, overflow: str = "prove", wide: bool = False) -> Case:
    inputs, outputs = int(rng.integers(1, 40)), int(rng.integers(1, 12))
    bits, weight_bits = (16, 16) if wide else (width(rng, 1, 10, 16), width(rng, 1, 8, 16))
    low, high = -(1 << (weight_bits - 1)), (1 << (weight_bits - 1)) - 1
    weight = rng.integers(low, high + 1, (outputs, inputs))
    bias = rng.integers(-5000, 5000, outputs)
    fraction = 0 if wide else int(rng.integers(0, 7))
    largest = (int(np.abs(weight).sum(axis=1).max()) * ((1 << bits) - 1) << fraction) + 5000
    accumulator = signed_bits(-largest, largest) - (0 if overflow == "prove" else int(rng.integers(0, 8)))
    requantize, constants = requantizer(rng, max(accumulator, 2), outputs if rng.random() < 0.5 else 1)
    spec = LinearSpec(
        input_features=inputs,
        output_features=outputs,
        input_bits=bits,
        weight_bits=weight_bits,
        bias_bits=14,
        bias_fraction_bits=fraction,
        overflow=overflow,
        requantize=requantize,
    )
    codes = rng.integers(0, 1 << bits, (int(rng.integers(1, 5)), 3, inputs))
    return spec, {"weight": weight, "bias": bias, **constants}, (codes,)


def zero_point(rng: np.random.Generator, bits: int, heads: int) -> np.ndarray:
    return np.array(rng.integers(0, 1 << bits, None if heads == 1 else heads))


def matmul(rng: np.random.Generator, overflow: str = "prove") -> Case:
    a_bits, b_bits, inner = width(rng, 1, 17, 24), width(rng, 1, 8, 24), int(rng.integers(1, 30))
    bits = signed_bits(-(inner << (a_bits + b_bits + 2)), inner << (a_bits + b_bits + 2))
    bits -= 0 if overflow == "prove" else int(rng.integers(0, 9))
    heads = int(rng.choice([1, 3]))
    requantize, constants = requantizer(rng, max(bits, 2), heads)
    spec = MatmulSpec(a_bits=a_bits, b_bits=b_bits, inner=inner, overflow=overflow, heads=heads, requantize=requantize)
    constants |= {"zero_a": zero_point(rng, a_bits, heads), "zero_b": zero_point(rng, b_bits, heads)}
    a = rng.integers(0, 1 << a_bits, (2, 3, 5, inner))
    b = rng.integers(0, 1 << b_bits, (2, 3, 4, inner)).swapaxes(-1, -2)
    return spec, constants, (a, b)


def log2_matmul(rng: np.random.Generator) -> Case:
    code_bits, value_bits, length = int(rng.integers(1, 6)), width(rng, 1, 10, 16), int(rng.integers(1, 40))
    beyond = str(rng.choice(["zero", "saturate"]))
    last = (1 << code_bits) - 1
    bits = signed_bits(0, ((3 << last >> 1) + length) << value_bits)
    heads = int(rng.choice([1, 2]))
    requantize, constants = requantizer(rng, bits, heads)
    spec = Log2MatmulSpec(
        code_bits=code_bits, value_bits=value_bits, row_length=length, beyond=beyond, heads=heads, requantize=requantize
    )
    constants |= {"zero_v": zero_point(rng, value_bits, heads)}
    # Rows as a softmax gives them: one large weight, the rest small.
    codes = np.minimum(rng.integers(last // 2, last + 2, (2, 4, length)), last + (beyond == "zero"))
    codes[..., 0] = rng.integers(0, last + 1, (2, 4))
    return spec, constants, (codes.astype(np.uint8), rng.integers(0, 1 << value_bits, (2, length, 3)))


def adalog_grid(rng: np.random.Generator) -> tuple[int, int, int]:
    """Width of codes, base, and guard bits that cut nothing or something."""
    code_bits = int(rng.integers(2, 9))
    # Only a base that is fine enough for the codes leaves no shift past the guard bits.
    q = int(rng.integers(1, 60 if rng.random() < 0.4 else max(2, (37 * 12) >> code_bits)))
    lossless = min(25, lossless_guard_bits(code_bits, q))
    return code_bits, q, lossless if rng.random() < 0.6 else int(rng.integers(0, lossless + 1))


def adalog_matmul(rng: np.random.Generator) -> Case:
    code_bits, q, guard = adalog_grid(rng)
    value_bits, length = width(rng, 1, 8, 16), int(rng.integers(1, 20))
    heads = int(rng.choice([1, 2]))
    requantize, constants = requantizer(rng, code_bits + 1 + value_bits + 1 + guard + length.bit_length() + 2, heads)
    spec = AdaLogMatmulSpec(
        code_bits=code_bits,
        value_bits=value_bits,
        row_length=length,
        guard_bits=guard,
        largest_shift=int(rng.integers(0, 64)),
        heads=heads,
        requantize=requantize,
    )
    shift, mantissa = adalog_tables(code_bits, q)
    constants |= {
        "shift_table": shift,
        "mantissa_table": mantissa,
        "zero_v": zero_point(rng, value_bits, heads),
    }
    codes = rng.integers(0, (1 << code_bits) + 1, (2, 4, length))
    return spec, constants, (codes, rng.integers(0, 1 << value_bits, (2, length, 3)))


def twin_matmul(rng: np.random.Generator) -> Case:
    code_bits, value_bits, length = int(rng.integers(2, 9)), width(rng, 1, 8, 16), int(rng.integers(1, 20))
    shift, heads = int(rng.integers(0, 20)), int(rng.choice([1, 2]))
    bits = code_bits + shift + value_bits + length.bit_length() + 2
    requantize, constants = requantizer(rng, bits, heads)
    spec = TwinMatmulSpec(
        code_bits=code_bits, value_bits=value_bits, row_length=length, heads=heads, requantize=requantize
    )
    constants |= {"range_shift": np.array(shift), "zero_v": zero_point(rng, value_bits, heads)}
    codes = rng.integers(0, 1 << code_bits, (3, 2, 4, length))
    return spec, constants, (codes, rng.integers(0, 1 << value_bits, (3, 2, length, 3)))


def twin_linear(rng: np.random.Generator, overflow: str = "prove") -> Case:
    plain, constants, (codes,) = linear(rng, overflow)
    assert isinstance(plain, LinearSpec)
    negative, positive = (0, int(rng.integers(0, 8))) if rng.random() < 0.5 else (int(rng.integers(0, 4)), 0)
    wide = dataclasses.replace(
        plain.requantize,
        input=IntFormat(plain.accumulator.bits + (max(negative, positive) if overflow == "prove" else 0), signed=True),
    )
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    spec = TwinLinearSpec(**{**fields, "requantize": wide})
    shifts = {"shift_negative": np.array(negative), "shift_positive": np.array(positive)}
    return spec, constants | shifts, (codes,)


def twin_quantize(rng: np.random.Generator) -> Case:
    bits, code_bits = int(rng.integers(1, 25)), int(rng.integers(2, 9))
    spec = TwinQuantizeSpec(probability_bits=bits, code_bits=code_bits)
    small = rng.integers(0, min(1 << bits, 300) + 1, (3, 2, 9))
    values = np.where(rng.random(small.shape) < 0.5, small, rng.integers(0, (1 << bits) + 1, small.shape))
    return spec, {"shift": np.array(rng.integers(0, bits + 1))}, (values,)


def adalog_quantize(rng: np.random.Generator) -> Case:
    code_bits, bits = int(rng.integers(2, 9)), int(rng.integers(4, 25))
    thresholds = adalog_thresholds(code_bits, int(rng.integers(10, 138)), probability_scale(bits))
    spec = AdaLogQuantizeSpec(input_bits=bits + 1, code_bits=code_bits)
    # Small ones too, which have the other codes.
    values = rng.integers(0, (1 << bits) + 1, (3, 2, 9)) >> rng.integers(0, bits, (3, 2, 9))
    return spec, {"thresholds": thresholds}, (values,)


def lookup(rng: np.random.Generator) -> Case:
    bits, out, channels = width(rng, 1, 10, 16), width(rng, 1, 10, 16), int(rng.choice([1, 3]))
    spec = LookupSpec(input_bits=bits, output_bits=out, channels=channels)
    table = rng.integers(0, 1 << out, (channels, 1 << bits))
    return spec, {"table": table}, (rng.integers(0, 1 << bits, (2, 5, 3)),)


def add(rng: np.random.Generator) -> Case:
    channels, a_bits, b_bits = int(rng.integers(1, 20)), width(rng, 1, 8, 16), width(rng, 8, 10, 16)
    multiplier_bits = int(rng.choice([16, int(rng.integers(1, 32))]))
    spec = AddSpec(
        channels=channels,
        a_bits=a_bits,
        b_bits=b_bits,
        output_bits=width(rng, 1, 10, 16),
        multiplier_bits=multiplier_bits,
        shift_bits=6,
        offset_bits=multiplier_bits + 16,
    )
    largest = multiplier_bits + max(a_bits, b_bits)
    reach = 1 << (largest - 1)
    constants = {
        "multiplier_a": rng.integers(0, 1 << multiplier_bits, channels),
        "multiplier_b": rng.integers(0, 1 << multiplier_bits, channels),
        "offset": rng.integers(-reach, reach, channels),
        "shift": np.clip(largest - spec.output_bits - rng.integers(-2, 8, channels), 0, 63),
    }
    batch = int(rng.choice([1, 3]))
    a = rng.integers(0, 1 << a_bits, (3, 4, channels))
    return spec, constants, (a, rng.integers(0, 1 << b_bits, (batch, 4, channels)))


def scores(rng: np.random.Generator, bits: int, length: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scores, and the constants of i-exp of some scale, or of one at which they spread over a few octaves."""
    spread = int(rng.integers(1, 1 << bits))
    scale = float(rng.choice([0.003, 0.01, 0.05, 0.0625, 0.25, 0.9, 1.5]))
    if rng.random() < 0.6:
        scale = float(np.clip(rng.uniform(1, 20) / spread, 0.0006, 1.5))
    return rng.integers((1 << bits) - spread, 1 << bits, (2, 5, length)), exponential_constants(scale)


def log_softmax(rng: np.random.Generator) -> Case:
    bits, length = int(rng.integers(2, 15)), int(rng.integers(1, 60))
    codes, constants = scores(rng, bits, length)
    spec = LogSoftmaxSpec(
        score_bits=bits,
        code_bits=int(rng.integers(1, 6)),
        fraction_bits=int(rng.integers(0, 31)),
        row_length=length,
        polynomial_bits=int(constants["c"]).bit_length(),
        beyond=str(rng.choice(["zero", "saturate"])),
    )
    return spec, constants, (codes,)


def softmax(rng: np.random.Generator) -> Case:
    bits, length = int(rng.integers(2, 15)), int(rng.integers(1, 60))
    codes, constants = scores(rng, bits, length)
    polynomial_bits, probability_bits = int(constants["c"]).bit_length(), int(rng.integers(1, 25))
    spec = SoftmaxSpec(
        score_bits=bits,
        fraction_bits=int(rng.integers(0, min(30, 61 - polynomial_bits - probability_bits) + 1)),
        row_length=length,
        polynomial_bits=polynomial_bits,
        probability_bits=probability_bits,
    )
    return spec, constants, (codes,)


def layernorm(rng: np.random.Generator) -> Case:
    while True:
        # The widths together have a limit.
        try:
            spec, constants = _any_layernorm(rng)
            spec.check_constants(constants)
        except HwsimError:
            continue
        codes = rng.integers(0, 1 << spec.input_bits, (3, 4, spec.channels))
        codes[0, 0] = codes[0, 0, 0]  # a constant row
        return spec, constants, (codes,)


def _any_layernorm(rng: np.random.Generator) -> tuple[LayerNormSpec, dict[str, np.ndarray]]:
    channels, bits, alpha_bits = int(rng.integers(1, 70)), width(rng, 1, 8, 16), int(rng.integers(0, 4))
    spec = LayerNormSpec(
        channels=channels,
        input_bits=bits,
        output_bits=width(rng, 1, 10, 16),
        alpha_bits=alpha_bits,
        mantissa_bits=int(rng.integers(4, 25)),
        radicand_bits=2 * int(rng.integers(2, 17)),
        gamma_bits=int(rng.integers(2, 25)),
        beta_bits=int(rng.integers(2, 41)),
    )
    fraction = max(0, spec.gamma_bits - spec.output_bits + int(rng.integers(-1, 5)))
    # No farther from zero than twice the codes, where its width allows more.
    beta = 1 << min(spec.beta_bits - 1, spec.output_bits + fraction + 1)
    return spec, {
        "zero_in": np.array(rng.integers(-(1 << bits), 1 << bits)),
        "alpha": rng.integers(0, 1 << alpha_bits, channels),
        "gamma": rng.integers(-(1 << (spec.gamma_bits - 1)), 1 << (spec.gamma_bits - 1), channels),
        "beta": rng.integers(-beta, beta, channels),
        "fraction_bits": np.array(fraction),
    }


def asymmetric_linear(rng: np.random.Generator, overflow: str = "prove") -> Case:
    inputs, outputs = int(rng.integers(1, 40)), int(rng.integers(1, 70))
    bits, weight_bits, fraction = width(rng, 1, 10, 16), width(rng, 1, 8, 16), int(rng.choice([0, rng.integers(0, 7)]))
    constants = unsigned_weights(rng, outputs, inputs, weight_bits) | {"bias": rng.integers(-5000, 5000, outputs)}
    largest = (((1 << weight_bits) - 1) * inputs * ((1 << bits) - 1) << fraction) + 5000
    accumulator = signed_bits(-largest, largest) - (0 if overflow == "prove" else int(rng.integers(0, 8)))
    requantize, more = requantizer(rng, accumulator, outputs if rng.random() < 0.5 else 1)
    spec = AsymmetricLinearSpec(
        input_features=inputs,
        output_features=outputs,
        input_bits=bits,
        weight_bits=weight_bits,
        bias_bits=14,
        bias_fraction_bits=fraction,
        overflow=overflow,
        requantize=requantize,
    )
    return spec, constants | more, (rng.integers(0, 1 << bits, (2, 5, inputs)),)


def unsigned_weights(rng: np.random.Generator, outputs: int, inputs: int, bits: int) -> dict[str, np.ndarray]:
    weight = rng.integers(0, 1 << bits, (outputs, inputs))
    return {"weight": weight, "zero_weight": rng.integers(0, 1 << bits, outputs)}


def adalog_linear(rng: np.random.Generator) -> Case:
    code_bits, q, guard = adalog_grid(rng)
    weight_bits = width(rng, 1, 7, 15)
    inputs, outputs = int(rng.integers(1, 20)), int(rng.integers(1, 20))
    shift, mantissa = adalog_tables(code_bits, q)
    bits = code_bits + 1 + weight_bits + guard + inputs.bit_length() + 3
    requantize, constants = requantizer(rng, max(bits, 15), outputs if rng.random() < 0.5 else 1)
    spec = AdaLogLinearSpec(
        input_features=inputs,
        output_features=outputs,
        code_bits=code_bits,
        weight_bits=weight_bits,
        bias_bits=14,
        guard_bits=guard,
        largest_shift=int(rng.integers(0, 64)),
        requantize=requantize,
    )
    constants |= unsigned_weights(rng, outputs, inputs, weight_bits)
    constants |= {"bias": rng.integers(-5000, 5000, outputs), "shift_table": shift, "mantissa_table": mantissa}
    return spec, constants, (rng.integers(0, (1 << code_bits) + 1, (3, 2, inputs)),)


def log_sqrt2_matmul(rng: np.random.Generator) -> Case:
    code_bits, value_bits, length = int(rng.integers(1, 9)), width(rng, 1, 8, 16), int(rng.integers(1, 20))
    guard, heads = int(rng.integers(0, 20)), int(rng.choice([1, 2]))
    requantize, constants = requantizer(rng, value_bits + guard + length.bit_length() + 2, heads, spare=1)
    spec = LogSqrt2MatmulSpec(
        code_bits=code_bits,
        value_bits=value_bits,
        row_length=length,
        guard_bits=guard,
        heads=heads,
        requantize=requantize,
    )
    constants |= {
        "multiplier_odd": rng.integers(0, 1 << requantize.multiplier_bits, heads),
        "zero_v": zero_point(rng, value_bits, heads),
    }
    codes = rng.integers(0, (1 << code_bits) + 1, (2, 2, 4, length))
    return spec, constants, (codes, rng.integers(0, 1 << value_bits, (2, 2, length, 3)))


def log_sqrt2_linear(rng: np.random.Generator) -> Case:
    code_bits, weight_bits, guard = int(rng.integers(1, 9)), width(rng, 1, 8, 15), int(rng.integers(0, 20))
    inputs, outputs = int(rng.integers(1, 20)), int(rng.integers(1, 20))
    channels = outputs if rng.random() < 0.5 else 1
    bits = max(weight_bits + guard + inputs.bit_length() + 2, 15)
    requantize, constants = requantizer(rng, bits, channels, spare=1)
    spec = LogSqrt2LinearSpec(
        input_features=inputs,
        output_features=outputs,
        code_bits=code_bits,
        weight_bits=weight_bits,
        bias_bits=14,
        guard_bits=guard,
        requantize=requantize,
    )
    constants |= unsigned_weights(rng, outputs, inputs, weight_bits)
    constants |= {
        "bias": rng.integers(-5000, 5000, outputs),
        "multiplier_odd": rng.integers(0, 1 << requantize.multiplier_bits, channels),
    }
    return spec, constants, (rng.integers(0, (1 << code_bits) + 1, (3, 2, inputs)),)


_PRODUCTS: dict[str, Callable[[np.random.Generator], Case]] = {
    "linear": linear,
    "linear wrapping": lambda rng: linear(rng, "wrap"),
    "linear saturating": lambda rng: linear(rng, "saturate"),
    "linear beyond float32": lambda rng: linear(rng, wide=True),
    "matmul": matmul,
    "matmul wrapping": lambda rng: matmul(rng, "wrap"),
    "matmul saturating": lambda rng: matmul(rng, "saturate"),
    "log2_matmul": log2_matmul,
    "adalog_matmul": adalog_matmul,
    "twin_matmul": twin_matmul,
    "twin_linear": twin_linear,
    "twin_linear wrapping": lambda rng: twin_linear(rng, "wrap"),
    "twin_linear saturating": lambda rng: twin_linear(rng, "saturate"),
    "asymmetric_linear": asymmetric_linear,
    "asymmetric_linear wrapping": lambda rng: asymmetric_linear(rng, "wrap"),
    "asymmetric_linear saturating": lambda rng: asymmetric_linear(rng, "saturate"),
    "adalog_linear": adalog_linear,
    "log_sqrt2_linear": log_sqrt2_linear,
    "log_sqrt2_matmul": log_sqrt2_matmul,
}
MAKERS: dict[str, Callable[[np.random.Generator], Case]] = {
    **{name: lambda rng, make=make: suited(rng, make(rng)) for name, make in _PRODUCTS.items()},
    "adalog_quantize": adalog_quantize,
    "twin_quantize": twin_quantize,
    "lookup": lookup,
    "add": add,
    "log_softmax": log_softmax,
    "softmax": softmax,
    "layernorm": layernorm,
}
