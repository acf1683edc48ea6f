"""The units that exist in hardware, by the kind of their spec: one line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from golden.errors import HwsimError
from golden.spec import Constants, Spec
from golden.vectors import UnitVectors
from rtl.adalog_decode import AdaLogDecode
from rtl.adalog_matmul import AdaLogMatmul
from rtl.adalog_quantize import AdaLogQuantize
from rtl.layernorm import LayerNorm
from rtl.log2_matmul import Log2Matmul
from rtl.log_softmax import LogSoftmax
from rtl.log_sqrt2_sums import LogSqrt2Sums
from rtl.lookup import Lookup
from rtl.requantize import Requantize
from rtl.stream import StreamUnit


@dataclass(frozen=True)
class Rows:
    """Activations as the rows that a unit takes and gives, in order, image by image.

    Attributes
    ----------
    inputs : tuple of integer arrays [rows, length] or [rows, length, n]
        The members of an element, lowest first; an array member has n values.
    output : integer array [rows, length] or [rows, length, n]
    """

    inputs: tuple[np.ndarray, ...]
    output: np.ndarray


def rows_of_last_axis(unit: StreamUnit, vectors: UnitVectors) -> Rows:
    """Rows are the last axis: of units that work on each element, or on each row, of one input."""
    (codes,) = vectors.inputs
    return Rows(inputs=(_as_rows(codes),), output=_as_rows(vectors.output))


def rows_of_products(unit: StreamUnit, vectors: UnitVectors) -> Rows:
    """Rows are codes, each with the part of its row of V that `lanes` columns take; the sums are one row.

    Of matrix products ``[..., M, K] x [..., K, N]``: for each matrix, for each `lanes` columns of V, the M
    rows of codes. Columns that the last ones lack are the last column again.
    """
    codes, values = vectors.inputs
    sums = vectors.accumulator
    if sums is None:
        sums = vectors.spec.accumulate(  # type: ignore[attr-defined]
            vectors.constants, codes, values
        )
    tiles = _tiles(values.shape[-1], unit.lanes)
    summed = np.moveaxis(sums[..., tiles], -2, -3)
    return Rows(_rows_of_tiles(codes, values, tiles), summed.reshape(-1, unit.lanes))


def rows_of_sums(unit: StreamUnit, vectors: UnitVectors) -> Rows:
    """Rows as of `rows_of_products`, of a product with several sums: those of the first kind come first."""
    codes, values = vectors.inputs
    tiles = _tiles(values.shape[-1], unit.lanes)
    # [..., rows, tiles, lanes, sums] to [..., tiles, rows, sums, lanes]
    summed = np.moveaxis(vectors.output[..., tiles, :], -3, -4).swapaxes(-1, -2)
    return Rows(_rows_of_tiles(codes, values, tiles), summed.reshape(-1, summed.shape[-2] * unit.lanes))


def _tiles(columns: int, lanes: int) -> np.ndarray:
    """Columns that each pass takes, [passes, lanes]."""
    return np.minimum(np.arange(-(-columns // lanes) * lanes), columns - 1).reshape(-1, lanes)


def _rows_of_tiles(codes: np.ndarray, values: np.ndarray, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [rows, length] and the values [rows, length, lanes] that each weighs."""
    count, length = codes.shape[-2:]
    matrices, lanes = (*codes.shape[:-2], len(tiles), count), tiles.shape[1]
    weighed = np.moveaxis(values[..., tiles], -2, -3)[..., None, :, :]
    return (
        np.broadcast_to(codes[..., None, :, :], (*matrices, length)).reshape(-1, length),
        np.broadcast_to(weighed, (*matrices, length, lanes)).reshape(-1, length, lanes),
    )


def _as_rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array[:, None]


@dataclass(frozen=True)
class Entry:
    """How to build a unit of a kind, and how its activations become rows.

    Attributes
    ----------
    unit : type
        A `rtl.stream.StreamUnit` with ``covering(layers, *, lanes)`` and ``equal_fields``.
    rows : callable
        Takes the unit and its `UnitVectors`, gives `Rows`.
    """

    unit: Any
    rows: Callable[[Any, UnitVectors], Rows]


UNITS = {
    "adalog_decode": Entry(AdaLogDecode, rows_of_last_axis),
    "adalog_matmul": Entry(AdaLogMatmul, rows_of_products),
    "adalog_quantize": Entry(AdaLogQuantize, rows_of_last_axis),
    "layernorm": Entry(LayerNorm, rows_of_last_axis),
    "log2_matmul": Entry(Log2Matmul, rows_of_products),
    "log_sqrt2_sums": Entry(LogSqrt2Sums, rows_of_sums),
    "log_softmax": Entry(LogSoftmax, rows_of_last_axis),
    "lookup": Entry(Lookup, rows_of_last_axis),
    "requantize": Entry(Requantize, rows_of_last_axis),
}


def entry(kind: str) -> Entry:
    """The catalogue entry of a spec kind.

    Raises
    ------
    HwsimError
        There is no hardware of this kind.
    """
    if kind not in UNITS:
        raise HwsimError(f"there is no hardware unit {kind!r}; there are {', '.join(sorted(UNITS))}")
    return UNITS[kind]


def is_product(kind: str) -> bool:
    """Whether the rows of a unit are codes with values that they weigh, and each row gives sums of `lanes` columns."""
    return kind in UNITS and UNITS[kind].rows in (rows_of_products, rows_of_sums)


def covering(layers: Sequence[tuple[Spec, Constants]], *, lanes: int) -> StreamUnit:
    """The loadable unit that serves all the layers, which must be of one kind.

    Raises
    ------
    HwsimError
        No hardware of this kind, or the layers differ in a field that one unit cannot vary.
    """
    return entry(layers[0][0].kind).unit.covering(layers, lanes=lanes)


def group_key(spec: Spec) -> tuple[object, ...]:
    """What layers must have in common for one unit to serve them."""
    return (spec.kind, *(getattr(spec, field) for field in entry(spec.kind).unit.equal_fields))
