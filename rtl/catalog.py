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
    (count, length), columns = codes.shape[-2:], values.shape[-1]
    tiles = np.minimum(np.arange(-(-columns // unit.lanes) * unit.lanes), columns - 1).reshape(-1, unit.lanes)
    matrices = (*codes.shape[:-2], len(tiles), count)
    weighed = np.moveaxis(values[..., tiles], -2, -3)[..., None, :, :]
    summed = np.moveaxis(sums[..., tiles], -2, -3)
    return Rows(
        inputs=(
            np.broadcast_to(codes[..., None, :, :], (*matrices, length)).reshape(-1, length),
            np.broadcast_to(weighed, (*matrices, length, unit.lanes)).reshape(-1, length, unit.lanes),
        ),
        output=summed.reshape(-1, unit.lanes),
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
