"""The exported boundary of a unit: AXI4-Stream in, out and for constants.

* ``aclk``, and ``aresetn``: active low, synchronous.
* ``s_axis_*``, ``m_axis_*``: a beat carries `lanes` elements, each padded to whole bytes,
  lane 0 lowest. ``tkeep`` has a bit a byte: a lane holds an element when all its bytes are kept.
  Input padding is ignored; output padding repeats the sign of signed elements and is 0 otherwise.
* ``s_axis_write_*``: for units whose constants are loaded at run time, the address in the low
  bytes, then the data, each padded to whole bytes; always ready.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import ClockDomain, Module, Shape, ShapeLike, Signal, Value
from amaranth.lib import data

from rtl.stream import StreamUnit


@dataclass(frozen=True)
class Port:
    """A port of the exported module: direction "input" or "output", width in bits."""

    name: str
    direction: str
    width: int
    meaning: str = ""


def element_of(payload: Value) -> ShapeLike:
    """Shape of one element of a row stream."""
    return payload.shape()["data"].shape.elem_shape


def padded_bytes(bits: int) -> int:
    """Bytes that hold so many bits."""
    return (bits + 7) // 8


def ports(unit: StreamUnit) -> list[Port]:
    """Ports of a unit, in the order of the module header."""
    found = [Port("aclk", "input", 1), Port("aresetn", "input", 1, "active low, synchronous")]
    for prefix, stream, forward, back in (("s_axis", unit.i, "input", "output"), ("m_axis", unit.o, "output", "input")):
        element, lanes = element_of(stream.payload), len(stream.payload.keep)
        size = padded_bytes(Shape.cast(element).width)
        layout = f"{lanes} x {describe(element)}, each in {_count(size)}"
        found += [
            Port(f"{prefix}_tdata", forward, 8 * size * lanes, layout),
            Port(
                f"{prefix}_tkeep",
                forward,
                size * lanes,
                "a bit a byte; lanes fill from 0, partial in the last beat only",
            ),
            Port(f"{prefix}_tlast", forward, 1, "last beat of a row"),
            Port(f"{prefix}_tvalid", forward, 1),
            Port(f"{prefix}_tready", back, 1),
        ]
    if unit.loadable:
        address, word = len(unit.w.payload.address), len(unit.w.payload.data)
        low, high = padded_bytes(address), padded_bytes(word)
        layout = f"address of {address} bits in {_count(low)}, then data of {word} bits in {_count(high)}"
        found += [
            Port("s_axis_write_tdata", "input", 8 * (low + high), layout),
            Port("s_axis_write_tvalid", "input", 1),
            Port("s_axis_write_tready", "output", 1, "always 1"),
        ]
    return found


def wrap(unit: StreamUnit, instance: str) -> tuple[Module, list[Signal]]:
    """A module with AXI4-Stream ports around a unit, and the signals of `ports`."""
    m = Module()
    signals = {port.name: Signal(port.width, name=port.name) for port in ports(unit)}
    domain = ClockDomain("sync")
    domain.clk = signals["aclk"]
    m.domains += domain
    m.d.comb += domain.rst.eq(~signals["aresetn"])
    m.submodules[instance] = unit
    for prefix, stream in (("s_axis", unit.i), ("m_axis", unit.o)):
        tdata, tkeep, tlast, tvalid, tready = (
            signals[f"{prefix}_t{name}"] for name in ("data", "keep", "last", "valid", "ready")
        )
        payload = stream.payload
        shape = Shape.cast(element_of(payload))
        size = padded_bytes(shape.width)
        for lane in range(len(payload.keep)):
            inside = payload.data.as_value()[lane * shape.width : (lane + 1) * shape.width]
            outside = tdata[8 * size * lane : 8 * size * (lane + 1)]
            kept = tkeep[size * lane : size * (lane + 1)]
            if prefix == "s_axis":
                m.d.comb += [inside.eq(outside), payload.keep[lane].eq(kept.all())]
            else:
                m.d.comb += outside.eq(inside.as_signed() if shape.signed else inside)
                m.d.comb += kept.eq(payload.keep[lane].replicate(size))
        if prefix == "s_axis":
            m.d.comb += [payload.last.eq(tlast), stream.valid.eq(tvalid), tready.eq(stream.ready)]
        else:
            m.d.comb += [tlast.eq(payload.last), tvalid.eq(stream.valid), stream.ready.eq(tready)]
    if unit.loadable:
        address, word = unit.w.payload.address, unit.w.payload.data
        tdata = signals["s_axis_write_tdata"]
        start = 8 * padded_bytes(len(address))
        m.d.comb += [
            address.eq(tdata[: len(address)]),
            word.eq(tdata[start : start + len(word)]),
            unit.w.valid.eq(signals["s_axis_write_tvalid"]),
            signals["s_axis_write_tready"].eq(1),
        ]
    return m, list(signals.values())


def describe(element: ShapeLike) -> str:
    """An element shape in words: ``unsigned 8``, or its fields, lowest first."""
    if isinstance(element, data.StructLayout):
        return "{" + ", ".join(f"{name}: {describe(field.shape)}" for name, field in element) + "}"
    if isinstance(element, data.ArrayLayout):
        return f"{element.length} of {describe(element.elem_shape)}"
    shape = Shape.cast(element)
    return f"{'signed' if shape.signed else 'unsigned'} {shape.width}"


def _count(size: int) -> str:
    return "1 byte" if size == 1 else f"{size} bytes"
