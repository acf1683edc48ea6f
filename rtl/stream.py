"""The stream contract every unit keeps: rows of elements, several lanes a beat.

A row travels as beats of `lanes` elements; `last` marks its final beat, and
`keep` says which lanes of that beat hold elements (lanes fill from 0 up; every
other beat is full). Transfers happen when `valid` and `ready` are both high;
`valid` never waits for `ready`, and a payload stays put until it is taken.
Constants that are loaded at run time arrive on a write stream of address and
data that is always ready.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from amaranth.hdl import Shape, ShapeLike, signed, unsigned
from amaranth.lib import data, stream

from golden.errors import HwsimError
from golden.spec import Constants, IntFormat, Spec


class StreamUnit(Protocol):
    """What every unit has, besides a classmethod ``covering(layers, *, lanes, ...)``.

    Attributes
    ----------
    spec : Spec
        The spec built for, or one that covers several layers.
    lanes : int
        Elements a beat.
    loadable : bool
        Whether constants are loaded at run time, through ``w``.
    parameters : dict
        Hardware parameters beyond the spec, by name.
    latency : int
        Cycles from the last beat of a row taken to its first result, without stalls.
    addresses : sequence of (str, str)
        Of loadable units: write addresses and what lies there, for the documentation.
    i, o, w
        Streams of `row_signature` in and out, and of `write_signature`.
    """

    spec: Any
    lanes: int
    loadable: bool
    i: Any
    o: Any
    w: Any

    @property
    def parameters(self) -> Mapping[str, int]: ...

    @property
    def latency(self) -> int: ...

    @property
    def addresses(self) -> Sequence[tuple[str, str]]: ...

    def cycles_per_row(self, length: int) -> int:
        """Sustained cycles between rows of a length, on its first line as a formula."""
        ...

    def writes(self, spec: Any, constants: Constants) -> list[tuple[int, int]]:
        """Address and data that load a layer's constants."""
        ...


def shape_of(format: IntFormat) -> Shape:
    """The Amaranth shape of an integer format."""
    return signed(format.bits) if format.signed else unsigned(format.bits)


def row_layout(element: ShapeLike, lanes: int) -> data.StructLayout:
    """Payload of one beat: ``data`` (array of `lanes` elements), ``keep`` (a bit a lane), ``last``."""
    return data.StructLayout({"data": data.ArrayLayout(element, lanes), "keep": unsigned(lanes), "last": unsigned(1)})


def row_signature(element: ShapeLike, lanes: int) -> stream.Signature:
    """A stream of `row_layout` beats."""
    return stream.Signature(row_layout(element, lanes))


def write_signature(address_bits: int, data_bits: int) -> stream.Signature:
    """The stream that loads constants: one ``address``, ``data`` pair a beat, always ready."""
    layout = data.StructLayout({"address": unsigned(address_bits), "data": unsigned(data_bits)})
    return stream.Signature(layout, always_ready=True)


def check_equal(specs: Sequence[Spec], fields: Sequence[str]) -> None:
    """Refuse layers that one unit cannot serve because they differ in a field.

    Raises
    ------
    HwsimError
        Names the field and its values.
    """
    for field in fields:
        values = sorted({str(getattr(spec, field)) for spec in specs})
        if len(values) > 1:
            raise HwsimError(
                f"one {specs[0].kind} unit cannot serve layers with {field} {' and '.join(values)}; build one for each"
            )


def check_one_head(specs: Sequence[Any]) -> None:
    """Refuse matrix products whose values have a grid of their own for each head; units have one for all.

    Raises
    ------
    HwsimError
        Names the field and its value.
    """
    for spec in specs:
        if spec.heads != 1:
            raise HwsimError(
                f"a {spec.kind} unit takes heads 1, not {spec.heads}: one zero_v and scale for all heads; "
                "give query, key and value one scale a tensor, or build and load one unit a head"
            )
