# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, check-untyped-defs=False
"""The units of `golden` as compiled kernels, equal to the last bit.

Matrix products run through float32 or float64 BLAS where every partial sum is
proven to stay below 2^24 or 2^53, so that the floats are exact integers; all
else is integer loops. Kernels run in one thread and release the interpreter lock:
`hwsim.execute.parallel` gives each core a batch of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from golden.accumulate import dot_bounds
from golden.adalog import AdaLogMatmulSpec, AdaLogQuantizeSpec
from golden.add import AddSpec
from golden.layernorm import LayerNormSpec
from golden.linear import LinearSpec
from golden.log2_matmul import Log2MatmulSpec
from golden.log_softmax import LogSoftmaxSpec
from golden.lookup import LookupSpec
from golden.matmul import MatmulSpec
from golden.requantize import RequantizeSpec
from golden.softmax import SoftmaxSpec
from golden.spec import Constants

Kernel = Callable[..., np.ndarray]

# Largest magnitude below which every integer is exact in the type.
_FLOAT32_EXACT = 1 << 24
_FLOAT64_EXACT = 1 << 53

_kernel: Any = njit(cache=True, nogil=True)
_inline: Any = njit(cache=True, nogil=True, inline="always")


@_inline
def _round_half_even_shift(x, shift):
    if shift == 0:
        return x
    return (x + (np.int64(1) << (shift - 1)) - 1 + ((x >> shift) & 1)) >> shift


@_inline
def _clip(x, low, high):
    return min(max(x, low), high)


@_inline
def _requantize(x, multiplier, shift, zero_point, highest):
    return _clip(_round_half_even_shift(x * multiplier + (zero_point << shift), shift), 0, highest)


@_kernel
def _requantize_rows(sums, bias, wrap_bits, multiplier, shift, zero_point, highest, out):
    rows, columns = sums.shape
    step = 0 if multiplier.size == 1 else 1
    spare = np.int64(64 - wrap_bits)
    for row in range(rows):
        for column in range(columns):
            total = np.int64(sums[row, column]) + bias[column]
            if wrap_bits:
                total = (total << spare) >> spare
            channel = column * step
            out[row, column] = _requantize(total, multiplier[channel], shift[channel], zero_point, highest)


@_kernel
def _saturating_linear(codes, weight, bias, low, high, out):
    for row in range(codes.shape[0]):
        for output in range(weight.shape[0]):
            total = _clip(bias[output], low, high)
            for k in range(weight.shape[1]):
                total = _clip(total + np.int64(codes[row, k]) * weight[output, k], low, high)
            out[row, output] = total


@_kernel
def _lookup(codes, table, out):
    rows, columns = codes.shape
    step = 0 if table.shape[0] == 1 else 1
    for row in range(rows):
        for column in range(columns):
            out[row, column] = table[column * step, codes[row, column]]


@_kernel
def _add(a, b, b_rows, multiplier_a, multiplier_b, offset, shift, highest, out):
    rows, columns = a.shape
    for row in range(rows):
        other = row % b_rows
        for column in range(columns):
            total = (
                np.int64(a[row, column]) * multiplier_a[column]
                + np.int64(b[other, column]) * multiplier_b[column]
                + offset[column]
            )
            out[row, column] = _clip(_round_half_even_shift(total, shift[column]), 0, highest)


@_inline
def _bit_length(x):
    length = 0
    while x > 0:
        x >>= 1
        length += 1
    return length


@_kernel
def _log_softmax(scores, exponentials, code_bits, past, out):
    rows, columns = scores.shape
    codes_by_row = np.zeros((rows, exponentials.size), np.uint8)
    for row in range(rows):
        highest = 0
        for column in range(columns):
            highest = max(highest, np.int64(scores[row, column]))
        total = np.int64(0)
        for column in range(columns):
            total += exponentials[highest - scores[row, column]]
        # The code depends on the distance from the maximum alone: at most one division a distance.
        for distance in range(highest + 1):
            codes_by_row[row, distance] = 255
        for column in range(columns):
            distance = highest - scores[row, column]
            code = codes_by_row[row, distance]
            if code == 255:
                exponential = exponentials[distance]
                code = past
                if exponential > 0:
                    ratio = total // exponential
                    twice = 2 * (total - ratio * exponential)
                    if twice > exponential or (twice == exponential and ratio & 1):
                        ratio += 1
                    octave = _bit_length(ratio) - 1
                    wide = octave
                    if octave > 0:
                        wide += (ratio >> (octave - 1)) & 1
                    if wide < 1 << code_bits:
                        code = wide
                codes_by_row[row, distance] = code
            out[row, column] = code


@_kernel
def _softmax(scores, exponentials, probability_bits, out):
    rows, columns = scores.shape
    for row in range(rows):
        highest = 0
        for column in range(columns):
            highest = max(highest, np.int64(scores[row, column]))
        total = np.int64(0)
        for column in range(columns):
            total += exponentials[highest - scores[row, column]]
        for column in range(columns):
            numerator = exponentials[highest - scores[row, column]] << probability_bits
            quotient = numerator // total
            twice = 2 * (numerator - quotient * total)
            if twice > total or (twice == total and quotient & 1):
                quotient += 1
            out[row, column] = quotient


@_inline
def _reciprocal_sqrt(radicand, mantissa_bits, radicand_bits):
    half_length = (_bit_length(radicand) + 1) // 2
    excess = 2 * half_length - radicand_bits
    leading = radicand >> excess if excess >= 0 else radicand << -excess
    limit = np.int64(1) << (radicand_bits + 2 * (mantissa_bits - 1))
    mantissa = np.int64(0)
    for bit in range(mantissa_bits - 1, -1, -1):
        trial = mantissa | (np.int64(1) << bit)
        # trial * trial * leading could pass 2^63; the quotient decides the same.
        if trial * trial <= limit // leading:
            mantissa = trial
    return mantissa, mantissa_bits - 1 + half_length


@_kernel
def _layernorm(codes, zero_in, alpha, gamma, beta, fraction_bits, mantissa_bits, radicand_bits, highest, out):
    rows, columns = codes.shape
    for row in range(rows):
        s1 = np.int64(0)
        s2 = np.int64(0)
        for column in range(columns):
            x = (np.int64(codes[row, column]) - zero_in) << alpha[column]
            s1 += x
            s2 += x * x
        variance = columns * s2 - s1 * s1
        mantissa, exponent = np.int64(0), 0
        if variance > 0:
            mantissa, exponent = _reciprocal_sqrt(variance, mantissa_bits, radicand_bits)
        for column in range(columns):
            x = (np.int64(codes[row, column]) - zero_in) << alpha[column]
            numerator = gamma[column] * (mantissa * (columns * x - s1)) + (beta[column] << exponent)
            out[row, column] = _clip(_round_half_even_shift(numerator, exponent + fraction_bits), 0, highest)


@_kernel
def _adalog_quantize(values, thresholds, out):
    rows, columns = values.shape
    for row in range(rows):
        for column in range(columns):
            code = 0
            while code < thresholds.size and np.int64(values[row, column]) <= thresholds[code]:
                code += 1
            out[row, column] = code


def _int64(constants: Constants, *names: str) -> list[Any]:
    return [constants[name].astype(np.int64) for name in names]


def _rows(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1, array.shape[-1])


class _Requantizer:
    """Sums, exact integers in any type, to codes."""

    def __init__(self, spec: RequantizeSpec, constants: Constants, wrap_bits: int = 0) -> None:
        self.multiplier, self.shift = _int64(constants, "multiplier", "shift")
        self.zero_point = int(constants["zero_point"])
        self.format = spec.output
        self.wrap_bits = wrap_bits

    def __call__(self, sums: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        rows = _rows(sums)
        out = np.empty(rows.shape, self.format.dtype)
        start = np.zeros(rows.shape[1], np.int64) if bias is None else bias
        _requantize_rows(
            rows, start, self.wrap_bits, self.multiplier, self.shift, self.zero_point, self.format.maximum, out
        )
        return out.reshape(sums.shape)


def _exact_float(largest: int) -> type[np.floating[Any]] | None:
    if largest < _FLOAT32_EXACT:
        return np.float32
    return np.float64 if largest < _FLOAT64_EXACT else None


def _reference(spec: Any, constants: Constants) -> Kernel:
    return lambda *inputs: spec.compute(constants, *inputs)


def _linear_kernel(spec: LinearSpec, constants: Constants) -> Kernel:
    weight, bias = _int64(constants, "weight", "bias")
    low, high = dot_bounds(weight, np.zeros_like(bias), 0, spec.input.maximum)
    kind = _exact_float(max(-low, high))
    requantize = _Requantizer(spec.requantize, constants, spec.accumulator.bits if spec.overflow == "wrap" else 0)

    if spec.overflow == "saturate":
        limits = spec.accumulator.minimum, spec.accumulator.maximum

        def saturating(codes: np.ndarray) -> np.ndarray:
            rows = _rows(codes)
            sums = np.empty((len(rows), spec.output_features), np.int64)
            _saturating_linear(rows, weight, bias, *limits, sums)
            return requantize(sums).reshape(*codes.shape[:-1], -1)

        return saturating
    if kind is None:
        return _reference(spec, constants)
    float_weight = np.ascontiguousarray(weight.T.astype(kind))

    def kernel(codes: np.ndarray) -> np.ndarray:
        sums = _rows(codes).astype(kind) @ float_weight
        return requantize(sums, bias).reshape(*codes.shape[:-1], -1)

    return kernel


def _product_kernel(
    requantize: _Requantizer,
    largest: int,
    left: Callable[[np.ndarray, Any], np.ndarray],
    right: Callable[[np.ndarray, Any], np.ndarray],
) -> Kernel | None:
    kind = _exact_float(largest)
    if kind is None:
        return None
    return lambda a, b: requantize(left(a, kind) @ right(b, kind))


def _matmul_kernel(spec: MatmulSpec, constants: Constants) -> Kernel:
    zero_a, zero_b = (int(constants[name]) for name in ("zero_a", "zero_b"))
    requantize = _Requantizer(spec.requantize, constants, spec.accumulator.bits if spec.overflow == "wrap" else 0)
    kernel = None
    if spec.overflow != "saturate":
        kernel = _product_kernel(
            requantize,
            spec.bounds(constants)[1],
            lambda a, kind: a.astype(kind) - kind(zero_a),
            lambda b, kind: b.astype(kind) - kind(zero_b),
        )
    return kernel or _reference(spec, constants)


def _log2_matmul_kernel(spec: Log2MatmulSpec, constants: Constants) -> Kernel:
    zero_v = int(constants["zero_v"])
    weights = np.ldexp(1.0, spec.last_code - np.arange(spec.zero_symbol + 1))
    weights[spec.zero_symbol] = 0
    kernel = _product_kernel(
        _Requantizer(spec.requantize, constants),
        spec.bounds(constants)[1],
        lambda codes, kind: weights.astype(kind)[codes],
        lambda values, kind: values.astype(kind) - kind(zero_v),
    )
    return kernel or _reference(spec, constants)


def _adalog_matmul_kernel(spec: AdaLogMatmulSpec, constants: Constants) -> Kernel:
    shift, mantissa = _int64(constants, "shift_table", "mantissa_table")
    used = shift <= spec.largest_shift
    if (shift[used] > spec.guard_bits).any():
        # Products are cut one by one: no matrix product of the whole gives these bits.
        return _reference(spec, constants)
    zero_v = int(constants["zero_v"])
    weights = np.append(np.where(used, mantissa << (spec.guard_bits - np.minimum(shift, spec.guard_bits)), 0), 0)
    kernel = _product_kernel(
        _Requantizer(spec.requantize, constants),
        spec.bounds(constants)[1],
        lambda codes, kind: weights.astype(kind)[codes],
        lambda values, kind: values.astype(kind) - kind(zero_v),
    )
    return kernel or _reference(spec, constants)


def _lookup_kernel(spec: LookupSpec, constants: Constants) -> Kernel:
    table = np.ascontiguousarray(constants["table"].astype(spec.output.dtype))

    def kernel(codes: np.ndarray) -> np.ndarray:
        rows = _rows(codes)
        out = np.empty(rows.shape, table.dtype)
        _lookup(rows, table, out)
        return out.reshape(codes.shape)

    return kernel


def _add_kernel(spec: AddSpec, constants: Constants) -> Kernel:
    arrays = _int64(constants, "multiplier_a", "multiplier_b", "offset", "shift")

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        left, right = _rows(a), _rows(b)
        out = np.empty(left.shape, spec.output.dtype)
        _add(left, right, len(right), *arrays, spec.output.maximum, out)
        return out.reshape(a.shape)

    return kernel


def _log_softmax_kernel(spec: LogSoftmaxSpec, constants: Constants) -> Kernel:
    exponentials = spec.exponentials(constants)
    past = spec.zero_symbol if spec.beyond == "zero" else spec.zero_symbol - 1

    def kernel(scores: np.ndarray) -> np.ndarray:
        rows = _rows(scores)
        out = np.empty(rows.shape, spec.output.dtype)
        _log_softmax(rows, exponentials, spec.code_bits, past, out)
        return out.reshape(scores.shape)

    return kernel


def _softmax_kernel(spec: SoftmaxSpec, constants: Constants) -> Kernel:
    exponentials = spec.exponentials(constants)

    def kernel(scores: np.ndarray) -> np.ndarray:
        rows = _rows(scores)
        out = np.empty(rows.shape, spec.output.dtype)
        _softmax(rows, exponentials, spec.probability_bits, out)
        return out.reshape(scores.shape)

    return kernel


def _layernorm_kernel(spec: LayerNormSpec, constants: Constants) -> Kernel:
    alpha, gamma, beta = _int64(constants, "alpha", "gamma", "beta")
    zero_in, fraction_bits = int(constants["zero_in"]), int(constants["fraction_bits"])

    def kernel(codes: np.ndarray) -> np.ndarray:
        rows = _rows(codes)
        out = np.empty(rows.shape, spec.output.dtype)
        _layernorm(
            rows,
            zero_in,
            alpha,
            gamma,
            beta,
            fraction_bits,
            spec.mantissa_bits,
            spec.radicand_bits,
            spec.output.maximum,
            out,
        )
        return out.reshape(codes.shape)

    return kernel


def _adalog_quantize_kernel(spec: AdaLogQuantizeSpec, constants: Constants) -> Kernel:
    (thresholds,) = _int64(constants, "thresholds")

    def kernel(values: np.ndarray) -> np.ndarray:
        rows = _rows(values)
        out = np.empty(rows.shape, spec.output.dtype)
        _adalog_quantize(rows, thresholds, out)
        return out.reshape(values.shape)

    return kernel


# Units not listed move data; the reference does that without a copy.
KERNELS: dict[str, Callable[[Any, Constants], Kernel]] = {
    "linear": _linear_kernel,
    "matmul": _matmul_kernel,
    "log2_matmul": _log2_matmul_kernel,
    "adalog_matmul": _adalog_matmul_kernel,
    "lookup": _lookup_kernel,
    "add": _add_kernel,
    "log_softmax": _log_softmax_kernel,
    "softmax": _softmax_kernel,
    "layernorm": _layernorm_kernel,
    "adalog_quantize": _adalog_quantize_kernel,
    "requantize": lambda spec, constants: _Requantizer(spec, constants),
}
