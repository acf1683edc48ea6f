# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, check-untyped-defs=False
"""The units of `golden` as compiled kernels, equal to the last bit.

Matrix products are in `hwsim.execute.product_kernels`. Kernels run in one thread and
release the interpreter lock: `hwsim.execute.parallel` gives each core a batch of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from golden.adalog import AdaLogQuantizeSpec
from golden.add import AddSpec
from golden.layernorm import LayerNormSpec
from golden.lookup import LookupSpec
from golden.requantize import RequantizeSpec
from golden.spec import Constants
from golden.twin import TwinQuantizeSpec

Kernel = Callable[..., np.ndarray]

# Inputs of a quantizer that becomes a table: of 2^17 bytes, mostly read at the small end.
LARGEST_TABLE_BITS = 17

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
def saturating_linear(codes, weight, bias, low, high, out):
    """Sums of ``codes @ weight.T + bias``, clipped after every product."""
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


@_kernel
def _twin_quantize(values, split, excess, shift, half, out):
    rows, columns = values.shape
    for row in range(rows):
        for column in range(columns):
            value = np.int64(values[row, column])
            fine = value < split
            drop = excess - shift if fine else excess
            code = _round_half_even_shift(value, drop) if drop >= 0 else value << -drop
            out[row, column] = min(code, half - 1) + (0 if fine else half)


def int64_of(constants: Constants, *names: str) -> list[Any]:
    """Constants by name as int64 arrays."""
    return [constants[name].astype(np.int64) for name in names]


def as_rows(array: np.ndarray) -> np.ndarray:
    """The array as contiguous rows of its last axis."""
    return np.ascontiguousarray(array).reshape(-1, array.shape[-1])


class Requantizer:
    """Sums, exact integers in any type, to codes."""

    def __init__(self, spec: RequantizeSpec, constants: Constants, wrap_bits: int = 0) -> None:
        self.multiplier, self.shift = int64_of(constants, "multiplier", "shift")
        self.zero_point = int(constants["zero_point"])
        self.format = spec.output
        self.wrap_bits = wrap_bits

    def __call__(self, sums: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        rows = as_rows(sums)
        out = np.empty(rows.shape, self.format.dtype)
        start = np.zeros(rows.shape[1], np.int64) if bias is None else bias
        _requantize_rows(
            rows, start, self.wrap_bits, self.multiplier, self.shift, self.zero_point, self.format.maximum, out
        )
        return out.reshape(sums.shape)


def _lookup_kernel(spec: LookupSpec, constants: Constants) -> Kernel:
    table = np.ascontiguousarray(constants["table"].astype(spec.output.dtype))

    def kernel(codes: np.ndarray) -> np.ndarray:
        rows = as_rows(codes)
        out = np.empty(rows.shape, table.dtype)
        _lookup(rows, table, out)
        return out.reshape(codes.shape)

    return kernel


def _add_kernel(spec: AddSpec, constants: Constants) -> Kernel:
    arrays = int64_of(constants, "multiplier_a", "multiplier_b", "offset", "shift")

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        left, right = as_rows(a), as_rows(b)
        out = np.empty(left.shape, spec.output.dtype)
        _add(left, right, len(right), *arrays, spec.output.maximum, out)
        return out.reshape(a.shape)

    return kernel


def _layernorm_kernel(spec: LayerNormSpec, constants: Constants) -> Kernel:
    alpha, gamma, beta = int64_of(constants, "alpha", "gamma", "beta")
    zero_in, fraction_bits = int(constants["zero_in"]), int(constants["fraction_bits"])

    def kernel(codes: np.ndarray) -> np.ndarray:
        rows = as_rows(codes)
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


def _by_table(spec: Any, constants: Constants) -> Kernel | None:
    """A quantizer of one value as a table of its reference, None where that were too large to stay in a cache."""
    if spec.inputs[0].bits > LARGEST_TABLE_BITS:
        return None
    table = spec.compute(constants, np.arange(1 << spec.inputs[0].bits))[None]

    def kernel(values: np.ndarray) -> np.ndarray:
        rows = as_rows(values)
        out = np.empty(rows.shape, table.dtype)
        _lookup(rows, table, out)
        return out.reshape(values.shape)

    return kernel


def _adalog_quantize_kernel(spec: AdaLogQuantizeSpec, constants: Constants) -> Kernel:
    (thresholds,) = int64_of(constants, "thresholds")
    by_table = _by_table(spec, constants)
    if by_table is not None:
        return by_table

    def kernel(values: np.ndarray) -> np.ndarray:
        rows = as_rows(values)
        out = np.empty(rows.shape, spec.output.dtype)
        _adalog_quantize(rows, thresholds, out)
        return out.reshape(values.shape)

    return kernel


def _twin_quantize_kernel(spec: TwinQuantizeSpec, constants: Constants) -> Kernel:
    shift, half = int(constants["shift"]), 1 << (spec.code_bits - 1)
    split = 1 << (spec.probability_bits - shift)
    by_table = _by_table(spec, constants)
    if by_table is not None:
        return by_table

    def kernel(values: np.ndarray) -> np.ndarray:
        rows = as_rows(values)
        out = np.empty(rows.shape, spec.output.dtype)
        _twin_quantize(rows, split, spec.probability_bits - spec.code_bits + 1, shift, half, out)
        return out.reshape(values.shape)

    return kernel


KERNELS: dict[str, Callable[[Any, Constants], Kernel]] = {
    "lookup": _lookup_kernel,
    "add": _add_kernel,
    "layernorm": _layernorm_kernel,
    "adalog_quantize": _adalog_quantize_kernel,
    "twin_quantize": _twin_quantize_kernel,
    "requantize": lambda spec, constants: Requantizer(spec, constants),
}
