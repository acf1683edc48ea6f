# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, check-untyped-defs=False
"""Matrix products of `golden` through float BLAS, equal to the last bit.

float32 is exact while every partial sum is proven to stay below 2^24, float64
below 2^53; a product that has neither proof goes through integer loops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from golden.accumulate import dot_bounds
from golden.adalog import AdaLogMatmulSpec
from golden.heads import head_axis
from golden.linear import LinearSpec
from golden.log2_matmul import Log2MatmulSpec
from golden.matmul import MatmulSpec
from golden.spec import Constants
from golden.twin import TwinLinearSpec, TwinMatmulSpec
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
    return _linear_of(spec, constants, 0, spec.input.maximum, lambda codes, kind: codes.astype(kind))


def _twin_linear_kernel(spec: TwinLinearSpec, constants: Constants) -> Kernel:
    decoded = spec.decoded(constants)
    return _linear_of(spec, constants, int(decoded[0]), int(decoded[-1]), _table(decoded))


def _linear_of(spec: LinearSpec, constants: Constants, low: int, high: int, decode: Operand) -> Kernel:
    """Kernel of a linear unit whose decoded inputs lie in ``low..high``."""
    weight, bias = int64_of(constants, "weight", "bias")
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
    wrap_bits = spec.accumulator.bits if spec.overflow == "wrap" else 0
    return _product_kernel(spec, constants, _centred(constants["zero_a"]), _centred(constants["zero_b"]), wrap_bits)


def _log2_matmul_kernel(spec: Log2MatmulSpec, constants: Constants) -> Kernel:
    weights = np.ldexp(1.0, spec.last_code - np.arange(spec.zero_symbol + 1))
    weights[spec.zero_symbol] = 0
    return _product_kernel(spec, constants, _table(weights), _centred(constants["zero_v"]))


def _twin_matmul_kernel(spec: TwinMatmulSpec, constants: Constants) -> Kernel:
    return _product_kernel(spec, constants, _table(spec.weights(constants)), _centred(constants["zero_v"]))


def _adalog_matmul_kernel(spec: AdaLogMatmulSpec, constants: Constants) -> Kernel:
    shift, mantissa = int64_of(constants, "shift_table", "mantissa_table")
    used = shift <= spec.largest_shift
    if (shift[used] > spec.guard_bits).any():
        # Products are cut one by one: no matrix product of the whole gives these bits.
        return _reference(spec, constants)
    weights = np.append(np.where(used, mantissa << (spec.guard_bits - np.minimum(shift, spec.guard_bits)), 0), 0)
    return _product_kernel(spec, constants, _table(weights), _centred(constants["zero_v"]))


KERNELS: dict[str, Callable[[Any, Constants], Kernel]] = {
    "linear": _linear_kernel,
    "twin_linear": _twin_linear_kernel,
    "matmul": _matmul_kernel,
    "log2_matmul": _log2_matmul_kernel,
    "adalog_matmul": _adalog_matmul_kernel,
    "twin_matmul": _twin_matmul_kernel,
}
