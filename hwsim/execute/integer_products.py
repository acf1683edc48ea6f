"""Matrix products of `golden` on the processor's integer instructions, equal to the last bit.

Sums are kept modulo 2^32: exact where the bounds of the unit, or its wrapping accumulator, have at most
32 bits. Each function returns None where its unit does not fit, or the processor has no such instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from golden.requantize import RequantizeSpec
from golden.spec import Constants, IntFormat
from hwsim.execute.byte_tables import WIDTH
from hwsim.execute.integer_gemm import (
    Gemm,
    available,
    empty_codes,
    gemm,
    pack_weights,
    packed_shape,
    pad_columns,
)
from hwsim.execute.product_tile import ROUNDER

Kernel = Callable[..., np.ndarray]

_SUM = IntFormat(32, signed=True)
_BYTE = IntFormat(8, signed=True)
_WORD = IntFormat(16, signed=True)
_NO_PLANES = np.empty(0, np.uint8)
# The zero symbol behind 256 codes of 8 bits takes a ninth bit.
_BYTE_CODES = 256


def _holds(format: IntFormat, low: int, high: int) -> bool:
    return format.minimum <= low and high <= format.maximum


class _Epilogue:
    """Requantization of sums in the registers: a double multiplication and addition, rounded once.

    Exact: a sum of 32 bits and ``multiplier / 2**shift`` are doubles, the fused operation rounds their exact
    product plus the zero point, half to even, at the weight of 1 while the result stays below 2^51.
    """

    def __init__(self, spec: RequantizeSpec, constants: Constants) -> None:
        scale = np.ldexp(constants["multiplier"].astype(np.float64), -constants["shift"].astype(np.int64))
        zero_point = int(constants["zero_point"])
        self.exact = _SUM.largest_magnitude * float(scale.max()) + abs(zero_point) < 2**51
        self.scale = scale
        self.addend = ROUNDER + zero_point
        self.highest = float(spec.output.maximum)
        self.dtype = spec.output.dtype


def _spare_bits(spec: Any, bounds: tuple[int, int]) -> int | None:
    """32 less the width where sums wrap, 0 where they are proven; None where 32 bits do not do."""
    if getattr(spec, "overflow", "prove") == "wrap":
        return 32 - spec.accumulator.bits if spec.accumulator.bits <= 32 else None
    return 0 if _holds(_SUM, *bounds) else None


def _pick(kind: type[np.integer[Any]]) -> Gemm | None:
    for instructions in available():
        if instructions.bytes or kind is np.int16:
            return gemm(instructions)
    return None


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    """Contiguous rows of a length, zeros behind what there is."""
    if rows.shape[1] == length:
        return np.ascontiguousarray(rows)
    padded = np.zeros((len(rows), length), rows.dtype)
    padded[:, : rows.shape[1]] = rows
    return padded


class ConstantProduct:
    """``requantize(planes @ weight.T + bias)`` for a left operand of bytes (or words)."""

    def __init__(
        self,
        product: Gemm,
        weight: np.ndarray,
        kind: type[np.integer[Any]],
        bias: np.ndarray,
        spare: int,
        end: _Epilogue,
    ) -> None:
        self.product = product
        self.packed = pack_weights(weight, product.instructions.lanes, kind)
        self.columns = len(weight)
        # Modulo 2^32, as the sums are.
        self.start = pad_columns(bias, np.int64).astype(np.int32)
        self.scale = pad_columns(np.broadcast_to(end.scale, bias.shape), np.float64)
        self.spare, self.end = spare, end

    @property
    def length(self) -> int:
        """Elements of a row of the left operand, zeros past the inner axis."""
        return self.packed.shape[1] * self.packed.shape[3]

    def __call__(self, planes: np.ndarray) -> np.ndarray:
        """Codes ``[rows, columns]`` of ``[planes, rows, length or less]``, rows contiguous.

        Rows shorter than `length` must have as many bytes of anything behind the last.
        """
        count, rows, _ = planes.shape
        out = empty_codes((rows, self.columns), self.end.dtype)
        stride = planes.strides[1]
        self.product.multiply(
            planes, 0, stride, planes.strides[0], count, rows, self.packed, self.packed.shape[1], self.columns,
            self.start, np.zeros(rows, np.int32), self.spare, self.scale, self.end.addend, self.end.highest,
            out, 0, self.columns * out.itemsize,
        )  # fmt: skip
        return out


def _constant_product(
    spec: Any, constants: Constants, weight: np.ndarray, kind: type[np.integer[Any]], bounds: tuple[int, int]
) -> ConstantProduct | None:
    product, spare, end = _pick(kind), _spare_bits(spec, bounds), _Epilogue(spec.requantize, constants)
    if product is None or spare is None or not end.exact:
        return None
    return ConstantProduct(product, weight, kind, constants["bias"].astype(np.int64), spare, end)


def linear(spec: Any, constants: Constants, weight: np.ndarray, decoded: np.ndarray | None = None) -> Kernel | None:
    """Kernel of a linear unit.

    Parameters
    ----------
    spec : LinearSpec
    constants : mapping
    weight : ndarray of int64 [outputs, inputs]
        What its weights stand for.
    decoded : ndarray of int64, optional
        What each input code stands for; the code itself by default.
    """
    if spec.overflow == "saturate":
        return None
    low, high = (0, spec.input.maximum) if decoded is None else (int(decoded.min()), int(decoded.max()))
    weights = int(weight.min()), int(weight.max())
    bytes_do = low >= 0 and high <= 255 and _holds(_BYTE, *weights) and any(entry.bytes for entry in available())
    if not bytes_do and not (_holds(_WORD, low, high) and _holds(_WORD, *weights)):
        return None
    product = _constant_product(spec, constants, weight, np.int8 if bytes_do else np.int16, spec.bounds(constants))
    if product is None:
        return None
    operand = np.uint8 if bytes_do else np.int16
    table = None if decoded is None else decoded.astype(operand)

    def kernel(codes: np.ndarray) -> np.ndarray:
        rows = codes.reshape(-1, codes.shape[-1])
        rows = rows.astype(operand, copy=False) if table is None else table[rows]
        return product(_padded(rows, product.length)[None]).reshape(*codes.shape[:-1], -1)

    return kernel


def base_256(values: np.ndarray) -> np.ndarray:
    """Digits ``[count, len(values) or 64]`` of values of 0 or more, the highest first."""
    count = max(1, -(-int(values.max()).bit_length() // 8))
    values = np.append(values, np.zeros(max(0, WIDTH - len(values)), values.dtype))
    return np.stack([(values >> (8 * place)) & 255 for place in reversed(range(count))]).astype(np.uint8)


def table_linear(spec: Any, constants: Constants, weight: np.ndarray, values: np.ndarray) -> Kernel | None:
    """Kernel of a linear unit whose codes stand for `values` of 0 or more, of any width that the sums allow."""
    if not _holds(_BYTE, int(weight.min()), int(weight.max())):
        return None
    product = _constant_product(spec, constants, weight, np.int8, spec.bounds(constants))
    if product is None:
        return None
    digits = base_256(values)

    def kernel(codes: np.ndarray) -> np.ndarray:
        flat = np.ascontiguousarray(codes).reshape(-1)
        planes = empty_codes((len(digits), flat.size // codes.shape[-1], codes.shape[-1]), np.uint8)
        if len(values) <= _BYTE_CODES:
            product.product.decode(flat.astype(np.uint8, copy=False), digits, planes.reshape(-1), flat.size)
        else:
            planes[...] = digits[:, flat].reshape(planes.shape)
        return product(planes).reshape(*codes.shape[:-1], -1)

    return kernel


def _four_axes(array: np.ndarray, heads: int, kind: type[np.unsignedinteger[Any]]) -> np.ndarray:
    """Contiguous ``[lead, heads, M, N]`` of ``[..., heads, M, N]``."""
    return np.ascontiguousarray(array, kind).reshape(-1, heads, *array.shape[-2:])


def _with_spare_end(array: np.ndarray) -> np.ndarray:
    copied = empty_codes(array.shape, array.dtype)
    copied[...] = array
    return copied


def matmul(
    spec: Any,
    constants: Constants,
    zeros: tuple[np.ndarray | int, np.ndarray],
    right_bits: int,
    left: int | np.ndarray,
) -> Kernel | None:
    """Kernel of a product of two activations.

    Parameters
    ----------
    spec : a unit with `golden.heads`, `bounds` and `requantize`
    constants : mapping
    zeros : zero points of both operands
    right_bits : int
        Width of the right operand.
    left : int or ndarray of int64
        Width of the left operand, or what its codes stand for, 0 or more.
    """
    narrow = right_bits <= 8 and (left <= 8 if isinstance(left, int) else len(left) <= _BYTE_CODES)
    narrow = narrow and any(entry.bytes for entry in available())
    if not narrow and (right_bits > 16 or not (left <= 15 if isinstance(left, int) else left.max() <= _WORD.maximum)):
        return None
    kind = np.int8 if narrow else np.int16
    product, spare, end = _pick(kind), _spare_bits(spec, spec.bounds(constants)), _Epilogue(spec.requantize, constants)
    if product is None or spare is None or not end.exact or getattr(spec, "overflow", "prove") == "saturate":
        return None
    lanes = product.instructions.lanes
    bits, step = 8 * np.dtype(kind).itemsize, 4 // np.dtype(kind).itemsize
    operand: Any = np.uint8 if narrow else np.uint16
    flip = np.uint32(sum(1 << (bits * i + bits - 1) for i in range(step)) if right_bits == bits else 0)
    digits = None
    if not isinstance(left, int):
        digits = base_256(left.astype(np.int64)) if narrow else left.astype(np.int16)[None]
    zero_a, zero_b = (np.array(np.broadcast_to(zero, spec.heads), np.int64) for zero in zeros)
    scale = np.array(np.broadcast_to(end.scale, spec.heads))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        columns = b.shape[-1]
        # Keys come as a transposed view: they are packed from what lies in memory.
        transposed = b.strides[-2] == b.itemsize and b.strides[-1] != b.itemsize
        left_codes = _four_axes(a, spec.heads, operand)
        right_codes = _four_axes(b.swapaxes(-1, -2) if transposed else b, spec.heads, operand)
        lead, heads, rows, inner = left_codes.shape
        packed = np.zeros(packed_shape(columns, inner, lanes, step), kind)
        if digits is None:
            planes = _NO_PLANES
            if inner % step:
                # A group reads on behind the last code.
                left_codes = _with_spare_end(left_codes)
        else:
            planes = empty_codes((len(digits) * rows * inner,), np.uint8 if narrow else np.int16)
        out = empty_codes((lead, heads, rows, columns), end.dtype)
        product.multiply_heads(
            left_codes, digits, zero_a, right_codes, transposed, flip, zero_b, planes, packed,
            spare, scale, end.addend, end.highest, out,
        )  # fmt: skip
        return out.reshape(*a.shape[:-1], columns)

    return kernel
