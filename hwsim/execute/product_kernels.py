# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, check-untyped-defs=False
"""Matrix products of `golden`, equal to the last bit: by `hwsim.execute.integer_products`, else through float BLAS.

float32 is exact while every partial sum is proven to stay below 2^24, float64
below 2^53; a product that has neither proof goes through integer loops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from golden.accumulate import dot_bounds
from golden.adalog import AdaLogMatmulSpec
from golden.adalog_linear import AdaLogLinearSpec
from golden.asymmetric_linear import centred_weights
from golden.heads import head_axis
from golden.linear import LinearSpec
from golden.log2_matmul import Log2MatmulSpec
from golden.log_sqrt2 import LogSqrt2LinearSpec, LogSqrt2MatmulSpec, join_parities
from golden.matmul import MatmulSpec
from golden.spec import Constants
from golden.twin import TwinLinearSpec, TwinMatmulSpec
from hwsim.execute import integer_products
from hwsim.execute.numba_kernels import Kernel, Requantizer, as_rows, int64_of, saturating_linear

# Largest magnitude below which every integer is exact in the type.
_FLOAT32_EXACT = 1 << 24
_FLOAT64_EXACT = 1 << 53

Operand = Callable[[np.ndarray, Any], np.ndarray]


def _exact_float(largest: int) -> type[np.floating[Any]] | None:
    if largest < _FLOAT32_EXACT:
        return np.float32
    return np.float64 if largest < _FLOAT64_EXACT else None


def _reference(spec: Any, constants: Constants) -> Kernel:
    return lambda *inputs: spec.compute(constants, *inputs)


def _linear_kernel(spec: LinearSpec, constants: Constants) -> Kernel:
    return _linear_of(spec, constants)


def _twin_linear_kernel(spec: TwinLinearSpec, constants: Constants) -> Kernel:
    return _linear_of(spec, constants, spec.decoded(constants))


def _linear_of(spec: LinearSpec, constants: Constants, decoded: np.ndarray | None = None) -> Kernel:
    """Kernel of a linear unit whose input codes are `decoded` by a table."""
    weight, bias = spec.effective_weights(constants), constants["bias"].astype(np.int64)
    integer = integer_products.linear(spec, constants, weight, decoded)
    if integer is not None:
        return integer
    low, high = (0, spec.input.maximum) if decoded is None else (int(decoded.min()), int(decoded.max()))
    decode: Operand = (lambda codes, kind: codes.astype(kind)) if decoded is None else _table(decoded)
    lowest, highest = dot_bounds(weight, np.zeros_like(bias), low, high)
    kind = _exact_float(max(-lowest, highest))
    requantize = Requantizer(spec.requantize, constants, spec.accumulator.bits if spec.overflow == "wrap" else 0)

    if spec.overflow == "saturate":
        limits = spec.accumulator.minimum, spec.accumulator.maximum

        def saturating(codes: np.ndarray) -> np.ndarray:
            rows = as_rows(decode(codes, np.int64))
            sums = np.empty((len(rows), spec.output_features), np.int64)
            saturating_linear(rows, weight, bias, *limits, sums)
            return requantize(sums).reshape(*codes.shape[:-1], -1)

        return saturating
    if kind is None:
        return _reference(spec, constants)
    float_weight = np.ascontiguousarray(weight.T.astype(kind))

    def kernel(codes: np.ndarray) -> np.ndarray:
        sums = as_rows(decode(codes, kind)) @ float_weight
        return requantize(sums, bias).reshape(*codes.shape[:-1], -1)

    return kernel


def _product_kernel(spec: Any, constants: Constants, left: Operand, right: Operand, wrap_bits: int = 0) -> Kernel:
    kind = _exact_float(spec.bounds(constants)[1])
    if kind is None:
        return _reference(spec, constants)
    requantize = _requantizer_of_heads(spec, constants, wrap_bits)
    return lambda a, b: requantize(left(a, kind) @ right(b, kind))


def _requantizer_of_heads(spec: Any, constants: Constants, wrap_bits: int) -> Callable[[np.ndarray], np.ndarray]:
    if spec.heads == 1:
        return Requantizer(spec.requantize, constants, wrap_bits)
    names = ("multiplier", "shift")
    heads = [
        Requantizer(
            spec.requantize, {**constants, **{name: constants[name][head : head + 1] for name in names}}, wrap_bits
        )
        for head in range(spec.heads)
    ]

    def requantize(sums: np.ndarray) -> np.ndarray:
        out = np.empty(sums.shape, spec.output.dtype)
        for head, one in enumerate(heads):
            out[..., head, :, :] = one(sums[..., head, :, :])
        return out

    return requantize


def _table(entries: np.ndarray) -> Operand:
    """Codes to what they stand for."""
    return lambda codes, kind: entries.astype(kind)[codes]


def _centred(zero_point: np.ndarray) -> Operand:
    """Codes less their zero point, which may be one a head."""
    zero = head_axis(zero_point)
    return lambda codes, kind: codes.astype(kind) - zero.astype(kind)


def _matmul_kernel(spec: MatmulSpec, constants: Constants) -> Kernel:
    if spec.overflow == "saturate":
        return _reference(spec, constants)
    zeros = constants["zero_a"], constants["zero_b"]
    integer = integer_products.matmul(spec, constants, zeros, spec.b_bits, spec.a_bits)
    if integer is not None:
        return integer
    wrap_bits = spec.accumulator.bits if spec.overflow == "wrap" else 0
    return _product_kernel(spec, constants, _centred(zeros[0]), _centred(zeros[1]), wrap_bits)


def _weighted_kernel(spec: Any, constants: Constants, weights: np.ndarray) -> Kernel:
    """Kernel of a product whose left codes stand for `weights`, int64 of 0 or more, and the right ones for values."""
    integer = integer_products.matmul(spec, constants, (0, constants["zero_v"]), spec.value_bits, weights)
    if integer is not None:
        return integer
    return _product_kernel(spec, constants, _table(weights), _centred(constants["zero_v"]))


def _log2_matmul_kernel(spec: Log2MatmulSpec, constants: Constants) -> Kernel:
    weights = np.int64(1) << np.arange(spec.last_code, -1, -1)
    return _weighted_kernel(spec, constants, np.append(weights, 0))


def _twin_matmul_kernel(spec: TwinMatmulSpec, constants: Constants) -> Kernel:
    return _weighted_kernel(spec, constants, spec.weights(constants))


def _adalog_weights(spec: Any, constants: Constants) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """What each code weighs, int64, and (code, mantissa, shift) of the codes whose products are cut one by one."""
    shift, mantissa = int64_of(constants, "shift_table", "mantissa_table")
    whole = shift <= min(spec.guard_bits, spec.largest_shift)
    weights = np.append(np.where(whole, mantissa << (spec.guard_bits - np.minimum(shift, spec.guard_bits)), 0), 0)
    cut = np.flatnonzero(~whole & (shift <= spec.largest_shift))
    return weights, [(int(code), int(mantissa[code]), int(shift[code])) for code in cut]


def _adalog_matmul_kernel(spec: AdaLogMatmulSpec, constants: Constants) -> Kernel:
    weights, cut = _adalog_weights(spec, constants)
    kind = _exact_float(spec.bounds(constants)[1])
    if kind is None:
        return _reference(spec, constants)
    if not cut:
        return _weighted_kernel(spec, constants, weights)
    requantize = _requantizer_of_heads(spec, constants, 0)
    entries, zero = weights.astype(kind), head_axis(constants["zero_v"])

    def kernel(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
        centred = values.astype(np.int64) - zero
        sums = entries[codes] @ centred.astype(kind)
        for code, mantissa, shift in cut:
            sums += (codes == code).astype(kind) @ ((mantissa * centred << spec.guard_bits) >> shift).astype(kind)
        return requantize(sums)

    return kernel


def _adalog_linear_kernel(spec: AdaLogLinearSpec, constants: Constants) -> Kernel:
    low, high = spec.bounds(constants)
    kind = _exact_float(max(-low, high))
    if kind is None:
        return _reference(spec, constants)
    (bias,) = int64_of(constants, "bias")
    weights, cut = _adalog_weights(spec, constants)
    if not cut:
        integer = integer_products.table_linear(spec, constants, centred_weights(constants), weights)
        if integer is not None:
            return integer
    entries, centred = weights.astype(kind), centred_weights(constants).T
    whole = np.ascontiguousarray(centred.astype(kind))
    parts = [
        (code, np.ascontiguousarray(((mantissa * centred << spec.guard_bits) >> shift).astype(kind)))
        for code, mantissa, shift in cut
    ]
    requantize = Requantizer(spec.requantize, constants)

    def kernel(codes: np.ndarray) -> np.ndarray:
        rows = as_rows(codes)
        sums = entries[rows] @ whole
        for code, part in parts:
            sums += (rows == code).astype(kind) @ part
        return requantize(sums, bias).reshape(*codes.shape[:-1], -1)

    return kernel


def _parity_sums(spec: Any, kind: Any) -> Callable[[np.ndarray, np.ndarray], list[np.ndarray]]:
    """Even and odd sums of codes and centred int64 operands, by a matrix product each.

    Codes whose products the guard bits cut take a product of their own; few are ever there, for
    probabilities end before.
    """
    code = np.arange(1 << spec.code_bits)
    shift = np.append(code // 2, 0)
    weights = np.append(np.where(code // 2 <= spec.guard_bits, 1, 0), 0) << np.maximum(spec.guard_bits - shift, 0)
    parity = np.append(code % 2, 0)
    tables = [np.where(parity == which, weights, 0).astype(kind) for which in range(2)]
    first_cut = 2 * (spec.guard_bits + 1)

    def sums(codes: np.ndarray, centred: np.ndarray) -> list[np.ndarray]:
        operand = centred.astype(kind)
        found = [(table[codes] @ operand).astype(np.int64) for table in tables]
        if first_cut < spec.zero_symbol:
            present = np.bincount(codes.ravel(), minlength=spec.zero_symbol)[first_cut : spec.zero_symbol]
            for cut in np.flatnonzero(present) + first_cut:
                part = ((centred << spec.guard_bits) >> min(int(cut) // 2, 63)).astype(kind)
                found[cut % 2] += ((codes == cut).astype(kind) @ part).astype(np.int64)
        return found

    return sums


def _log_sqrt2_matmul_kernel(spec: LogSqrt2MatmulSpec, constants: Constants) -> Kernel:
    kind = _exact_float(spec.bounds(constants)[1])
    if kind is None:
        return _reference(spec, constants)
    sums, zero = _parity_sums(spec, kind), head_axis(constants["zero_v"].astype(np.int64))

    def kernel(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
        even, odd = sums(codes, values.astype(np.int64) - zero)
        return spec.join(constants, even, odd)

    return kernel


def _log_sqrt2_linear_kernel(spec: LogSqrt2LinearSpec, constants: Constants) -> Kernel:
    low, high = spec.bounds(constants)
    kind = _exact_float(max(-low, high))
    if kind is None:
        return _reference(spec, constants)
    (bias,) = int64_of(constants, "bias")
    sums, centred = _parity_sums(spec, kind), np.ascontiguousarray(centred_weights(constants).T)

    def kernel(codes: np.ndarray) -> np.ndarray:
        even, odd = sums(as_rows(codes), centred)
        return join_parities(even + bias, odd, constants, spec.output).reshape(*codes.shape[:-1], -1)

    return kernel


KERNELS: dict[str, Callable[[Any, Constants], Kernel]] = {
    "linear": _linear_kernel,
    "asymmetric_linear": _linear_kernel,
    "adalog_linear": _adalog_linear_kernel,
    "log_sqrt2_linear": _log_sqrt2_linear_kernel,
    "log_sqrt2_matmul": _log_sqrt2_matmul_kernel,
    "twin_linear": _twin_linear_kernel,
    "matmul": _matmul_kernel,
    "log2_matmul": _log2_matmul_kernel,
    "adalog_matmul": _adalog_matmul_kernel,
    "twin_matmul": _twin_matmul_kernel,
}
