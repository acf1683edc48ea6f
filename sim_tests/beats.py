"""Rows of activations as AXI4-Stream beats, and back: the layout of `rtl.axi` in NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from amaranth.hdl import Shape, ShapeLike
from amaranth.lib import data

from rtl import axi


@dataclass(frozen=True)
class Beats:
    """Beats in order.

    Attributes
    ----------
    data : uint8 [beats, lanes, bytes]
    keep : bool [beats, lanes]
    last : bool [beats]
    """

    data: np.ndarray
    keep: np.ndarray
    last: np.ndarray

    def packed(self) -> np.ndarray:
        """One beat a row of bytes, bits from the lowest: tdata, tkeep, tlast."""
        count = len(self.data)
        keep = np.repeat(self.keep, self.data.shape[2], axis=1)
        flags = np.packbits(np.column_stack([keep, self.last]), axis=1, bitorder="little")
        return np.column_stack([self.data.reshape(count, -1), flags])

    @staticmethod
    def unpacked(packed: np.ndarray, lanes: int, size: int) -> tuple[Beats, np.ndarray]:
        """Beats of `packed`, and which of them have a ``tkeep`` that splits an element, bool [beats]."""
        data = packed[:, : lanes * size].reshape(-1, lanes, size)
        flags = np.unpackbits(packed[:, lanes * size :], axis=1, bitorder="little")[:, : lanes * size + 1].astype(bool)
        keep = flags[:, :-1].reshape(-1, lanes, size)
        whole = np.asarray(keep.all(axis=2))
        return Beats(data, whole, flags[:, -1]), np.asarray((keep.any(axis=2) != whole).any(axis=1))


def beats_of(
    element: ShapeLike, lanes: int, members: Sequence[np.ndarray], padding: np.random.Generator | None = None
) -> Beats:
    """Beats of rows of elements.

    Parameters
    ----------
    element : ShapeLike
        An integer shape, or a structure of integers and arrays of integers.
    lanes : int
    members : sequence of integer arrays [rows, length] or [rows, length, n]
        The members of the element, lowest first (one for an integer shape).
    padding : Generator, optional
        Fills the padding of bytes and the lanes without an element with random bits. Without it the
        padding is what the unit gives: the sign of a signed integer, else 0; empty lanes are 0.
    """
    fields = list(_integers(element))
    rows, length = members[0].shape[:2]
    values = np.concatenate([np.asarray(member).reshape(rows * length, -1) for member in members], axis=1)
    if values.shape[1] != len(fields):
        raise ValueError(f"elements have {len(fields)} integers, the rows {values.shape[1]}")
    shape = Shape.cast(element)
    size = axi.padded_bytes(shape.width)
    if len(fields) == 1:
        whole = values.astype("<i8").view(np.uint8).reshape(rows * length, 8)[:, :size].copy()
        if not shape.signed:
            whole &= _mask(shape.width, size)
    else:
        whole = _joined(values, [field.width for field in fields], size)
    if padding is not None:
        mask = _mask(shape.width, size)
        whole = (whole & mask) | (padding.integers(0, 256, whole.shape, dtype=np.uint8) & ~mask)
    per_row = -(-length // lanes)
    slots = per_row * lanes
    if padding is None:
        filled = np.zeros((rows, slots, size), np.uint8)
    else:
        filled = padding.integers(0, 256, (rows, slots, size), dtype=np.uint8)
    filled[:, :length] = whole.reshape(rows, length, size)
    keep = np.broadcast_to(np.arange(slots) < length, (rows, slots)).reshape(-1, lanes)
    last = np.broadcast_to(np.arange(per_row) == per_row - 1, (rows, per_row)).reshape(-1)
    return Beats(filled.reshape(-1, lanes, size), keep, last)


def words_of(unit_writes: Sequence[tuple[int, int]], address_bits: int, data_bits: int) -> np.ndarray:
    """Writes as ``s_axis_write_tdata``, uint8 [writes, bytes]."""
    low, high = axi.padded_bytes(address_bits), axi.padded_bytes(data_bits)
    words = b"".join(
        address.to_bytes(low, "little") + (word & ((1 << data_bits) - 1)).to_bytes(high, "little")
        for address, word in unit_writes
    )
    return np.frombuffer(words, np.uint8).reshape(len(unit_writes), low + high)


def element_text(element: ShapeLike, stored: np.ndarray) -> str:
    """The bytes of one element as a number, or its integers in braces."""
    bits = int.from_bytes(stored.tobytes(), "little")
    numbers = []
    for field in _integers(element):
        number = bits & ((1 << field.width) - 1)
        numbers.append(number - (field.signed and number >> (field.width - 1)) * (1 << field.width))
        bits >>= field.width
    return str(numbers[0]) if len(numbers) == 1 else "{" + ", ".join(map(str, numbers)) + "}"


def _integers(element: ShapeLike) -> Iterator[Shape]:
    """Shapes of the integers of an element, lowest first."""
    if isinstance(element, data.StructLayout):
        for _, field in element:
            yield from _integers(field.shape)
    elif isinstance(element, data.ArrayLayout):
        for _ in range(element.length):
            yield from _integers(element.elem_shape)
    else:
        yield Shape.cast(element)


def _joined(values: np.ndarray, widths: Sequence[int], size: int) -> np.ndarray:
    """Integers side by side, the first one lowest, in two's complement: uint8 [elements, size]."""
    limbs = np.zeros((len(values), -(-size // 8)), np.uint64)
    place = 0
    for column, width in zip(values.T, widths, strict=True):
        part = column.astype(np.int64).view(np.uint64) & np.uint64((1 << width) - 1)
        limb, shift = divmod(place, 64)
        limbs[:, limb] |= part << np.uint64(shift)
        if shift + width > 64:
            limbs[:, limb + 1] |= part >> np.uint64(64 - shift)
        place += width
    return limbs.astype("<u8", copy=False).view(np.uint8)[:, :size]


def _mask(bits: int, size: int) -> np.ndarray:
    """Bytes with the lowest `bits` bits set, uint8 [size]."""
    return np.frombuffer(((1 << bits) - 1).to_bytes(size, "little"), np.uint8)
