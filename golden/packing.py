"""Integers of any width side by side in bytes, and back.

Bit 0 of the first integer is bit 0 of the first byte, and every integer follows the last bit of the one before it:
two 4-bit codes a byte, four 2-bit ones, 12-bit ones across bytes. Signed integers are in two's complement. The unused
bits of the last byte are 0.
"""

from __future__ import annotations

import math

import numpy as np

from golden.errors import HwsimError
from golden.spec import IntFormat, Shape

# Integers whose bits are spread out at a time; a multiple of 8, so that every part but the last ends with a byte.
_AT_ONCE = 1 << 18


def packed_size(count: int, format: IntFormat) -> int:
    """Bytes that `count` packed integers take."""
    return (count * format.bits + 7) // 8


def pack(array: np.ndarray, format: IntFormat) -> bytes:
    """The integers of an array, row-major, at the width of the format.

    Parameters
    ----------
    array : integer ndarray
    format : IntFormat

    Raises
    ------
    HwsimError
        An integer does not fit.
    """
    flat = np.ascontiguousarray(format.check(array, "packed integers")).reshape(-1)
    flat = flat.astype(format.dtype.newbyteorder("<"), copy=False)
    width = flat.itemsize
    if format.bits == 8 * width:
        return flat.tobytes()
    parts = []
    for start in range(0, flat.size, _AT_ONCE):
        part = flat[start : start + _AT_ONCE].view(np.uint8).reshape(-1, width)
        bits = np.unpackbits(part, axis=1, count=format.bits, bitorder="little")
        parts.append(np.packbits(bits, bitorder="little").tobytes())
    return b"".join(parts)


def unpack(content: bytes, format: IntFormat, shape: Shape) -> np.ndarray:
    """The array that `pack` made these bytes of, in the smallest dtype of the format.

    Parameters
    ----------
    content : bytes
    format : IntFormat
    shape : tuple of int

    Raises
    ------
    HwsimError
        More or fewer bytes than the shape needs, or unused bits that are not 0.
    """
    count = math.prod(shape)
    expected = packed_size(count, format)
    if len(content) != expected:
        raise HwsimError(f"{len(content)} bytes for {count} integers of {format.bits} bits, which take {expected}")
    dtype = format.dtype.newbyteorder("<")
    if format.bits == 8 * dtype.itemsize:
        return np.frombuffer(content, dtype).astype(format.dtype).reshape(shape)
    unused = 8 * expected - count * format.bits
    if unused and content[-1] >> (8 - unused):
        raise HwsimError(f"the {unused} unused bits of the last byte are not 0")
    result = np.empty(count, format.dtype)
    source = np.frombuffer(content, np.uint8)
    for start in range(0, count, _AT_ONCE):
        size = min(_AT_ONCE, count - start)
        first = start * format.bits // 8
        part = source[first : first + packed_size(size, format)]
        bits = np.unpackbits(part, count=size * format.bits, bitorder="little").reshape(size, format.bits)
        # Above the width a signed integer repeats its sign, an unsigned one has zeros.
        wide = np.zeros((size, 8 * dtype.itemsize), np.uint8)
        if format.signed:
            wide[:] = bits[:, -1:]
        wide[:, : format.bits] = bits
        result[start : start + size] = np.packbits(wide, axis=1, bitorder="little").view(dtype).reshape(-1)
    return result.reshape(shape)
