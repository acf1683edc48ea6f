"""Verilog that gives somebody else's unit the ports of `rtl.axi`, so that the same bench plays it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from amaranth.hdl import Shape, ShapeLike
from amaranth.lib import data

from golden.errors import HwsimError
from rtl import axi
from rtl.stream import StreamUnit
from sim_tests.ports import PortMap, Side


@dataclass(frozen=True)
class _Member:
    """Integers of an element that lie side by side: `count` of a shape, from bit `start` on."""

    name: str
    shape: Shape
    count: int
    start: int


def adapter(
    module: str,
    top: str,
    ports: PortMap,
    theirs: Mapping[str, axi.Port],
    unit: StreamUnit,
    parameters: Mapping[str, str],
    row_lengths: Sequence[int],
) -> str:
    """A module with the ports of `unit` around theirs.

    Parameters
    ----------
    module, top : str
        Names of the adapter and of their module.
    ports : PortMap
    theirs : mapping of str to Port
        As `sim_tests.inspect_verilog.module_ports` finds them.
    unit : StreamUnit
        Ours of the kind, for the shapes of its streams.
    parameters : mapping of str to str
        Of their module.
    row_lengths : sequence of int
        Elements of the rows that it will give; from them come ``keep`` and ``last`` that it lacks.

    Raises
    ------
    HwsimError
        The map names a port that their module lacks, or one whose width or direction does not fit.
    """
    wired = _Wiring(ports, top, theirs)
    wired.connect(ports.clock, "input", 1, "aclk")
    if ports.reset is not None:
        wired.connect(ports.reset, "input", 1, "!aresetn" if ports.reset_high else "aresetn")
    lines = _input(wired, ports.input, unit) + _output(wired, ports.output, unit, row_lengths)
    ours = axi.ports(unit)
    if ports.constants is not None:
        write = ports.constants
        address, word = wired.width(write.address, "input"), wired.width(write.data, "input")
        low, high = axi.padded_bytes(address), axi.padded_bytes(word)
        ours = [port for port in ours if not port.name.startswith("s_axis_write")]
        ours += [
            axi.Port("s_axis_write_tdata", "input", 8 * (low + high)),
            axi.Port("s_axis_write_tvalid", "input", 1),
            axi.Port("s_axis_write_tready", "output", 1),
        ]
        wired.connect(write.address, "input", address, f"s_axis_write_tdata[{address - 1}:0]")
        wired.connect(write.data, "input", word, f"s_axis_write_tdata[{8 * low + word - 1}:{8 * low}]")
        wired.connect(write.valid, "input", 1, "s_axis_write_tvalid")
        if write.ready is None:
            lines.append("    assign s_axis_write_tready = 1'b1;")
        else:
            wired.connect(write.ready, "output", 1, "s_axis_write_tready")
    values = ", ".join(f".{name}({value})" for name, value in parameters.items())
    header = ",\n".join(f"    {port.direction} wire {_span(port.width)}{port.name}" for port in ours)
    connections = ",\n".join(f"        .{name}({value})" for name, value in wired.connections.items())
    return "\n".join(
        [
            f"// The ports of the {unit.spec.kind} unit around {top}, as {ports.path.name} says.",
            f"module {module} (",
            header,
            ");",
            *lines,
            f"    {top} {f'#({values}) ' if values else ''}unit (",
            connections,
            "    );",
            "endmodule",
            "",
        ]
    )


class _Wiring:
    """Connections to their ports, each checked."""

    def __init__(self, ports: PortMap, top: str, theirs: Mapping[str, axi.Port]):
        self.ports, self.top, self.theirs = ports, top, theirs
        self.connections: dict[str, str] = {}

    def width(self, name: str, direction: str) -> int:
        """Width of a port that must be there and have a direction."""
        if name not in self.theirs:
            near = difflib.get_close_matches(name, self.theirs, 1) or sorted(self.theirs)
            hint = f"did you mean {near[0]}?" if len(near) == 1 else f"it has {', '.join(near)}"
            raise HwsimError(f"{self.ports.path}: {self.top} has no port {name}; {hint}")
        port = self.theirs[name]
        if port.direction != direction:
            raise HwsimError(
                f"{self.ports.path}: port {name} of {self.top} is an {port.direction}, "
                f"where the map needs an {direction}"
            )
        return port.width

    def connect(self, name: str, direction: str, width: int, value: str, why: str = "") -> None:
        found = self.width(name, direction)
        if found != width:
            raise HwsimError(
                f"{self.ports.path}: port {name} of {self.top} has {found} bits, the map needs {width}"
                f"{f' ({why})' if why else ''}; correct lanes, element_bits, [parameters] or the port"
            )
        if name in self.connections:
            raise HwsimError(f"{self.ports.path}: port {name} of {self.top} has two roles; give each its own port")
        self.connections[name] = value


def _members(element: ShapeLike, side: Side, ports: PortMap, where: str) -> list[_Member]:
    """Members of an element that have a port of their own; all of it if there is but one port."""
    whole = Shape.cast(element)
    if list(side.data) == [""]:
        return [_Member("", whole, 1, 0)]
    fields = dict(element) if isinstance(element, data.StructLayout) else {}
    if set(fields) != set(side.data):
        wanted = f"the members {', '.join(fields)}" if fields else "one port"
        raise HwsimError(f"{ports.path}: {where}.data must name {wanted}, not {', '.join(side.data)}")
    found = []
    for name, field in fields.items():
        array = isinstance(field.shape, data.ArrayLayout)
        shape = Shape.cast(field.shape.elem_shape if array else field.shape)
        found.append(_Member(str(name), shape, field.shape.length if array else 1, field.offset))
    return found


def _input(wired: _Wiring, side: Side, unit: StreamUnit) -> list[str]:
    element, lanes = axi.element_of(unit.i.payload), len(unit.i.payload.keep)
    size = axi.padded_bytes(Shape.cast(element).width)
    for member in _members(element, side, wired.ports, "input"):
        width = member.shape.width
        stride = side.element_bits.get(member.name, width)
        parts = []
        for lane in range(lanes):
            for number in range(member.count):
                low = 8 * size * lane + member.start + width * number
                bits = f"s_axis_tdata[{low + width - 1}:{low}]"
                sign = f"s_axis_tdata[{low + width - 1}]" if member.shape.signed else "1'b0"
                parts.append(bits if stride == width else f"{{{{{stride - width}{{{sign}}}}}, {bits}}}")
        _fits(wired, side.data[member.name], stride, width)
        total, why = stride * len(parts), f"{len(parts)} x {stride} bits"
        wired.connect(side.data[member.name], "input", total, _joined(parts, side.low_first), why)
    wired.connect(side.valid, "input", 1, "s_axis_tvalid")
    if side.last is not None:
        wired.connect(side.last, "input", 1, "s_axis_tlast")
    if side.keep is not None:
        _, copies = _keep(wired, side, "input", lanes)
        kept = [f"{{{copies}{{&s_axis_tkeep[{size * lane + size - 1}:{size * lane}]}}}}" for lane in range(lanes)]
        wired.connect(side.keep, "input", lanes * copies, _joined(kept, side.low_first))
    if side.ready is None:
        return ["    assign s_axis_tready = 1'b1;"]
    wired.connect(side.ready, "output", 1, "s_axis_tready")
    return []


def _output(wired: _Wiring, side: Side, unit: StreamUnit, row_lengths: Sequence[int]) -> list[str]:
    element, lanes = axi.element_of(unit.o.payload), len(unit.o.payload.keep)
    shape = Shape.cast(element)
    size = axi.padded_bytes(shape.width)
    (member,) = _members(element, side, wired.ports, "output")
    stride = side.element_bits.get(member.name, shape.width)
    _fits(wired, side.data[member.name], stride, shape.width)
    wired.connect(side.data[member.name], "output", stride * lanes, "given", f"{lanes} x {stride} bits")
    lines = [f"    wire {_span(stride * lanes)}given;"]
    for lane in range(lanes):
        low = stride * (lane if side.low_first else lanes - 1 - lane)
        sign = f"given[{low + shape.width - 1}]" if shape.signed else "1'b0"
        fill = 8 * size - shape.width
        bits = f"given[{low + shape.width - 1}:{low}]"
        value = f"{{{{{fill}{{{sign}}}}}, {bits}}}" if fill else bits
        lines.append(f"    assign m_axis_tdata[{8 * size * (lane + 1) - 1}:{8 * size * lane}] = {value};")
    wired.connect(side.valid, "output", 1, "m_axis_tvalid")
    if side.ready is not None:
        wired.connect(side.ready, "input", 1, "m_axis_tready")
    beats, filled = _framing(wired, side, lanes, row_lengths)
    if side.last is not None:
        wired.connect(side.last, "output", 1, "m_axis_tlast")
    else:
        lines += [
            "    reg [31:0] place = 0;  // of the beat in its row: the unit has no last",
            f"    assign m_axis_tlast = place == {beats - 1};",
            "    always @(posedge aclk)",
            "        if (!aresetn) place <= 0;",
            "        else if (m_axis_tvalid && m_axis_tready) place <= m_axis_tlast ? 0 : place + 1;",
        ]
    if side.keep is None:
        full, partial = "1" * (size * lanes), "1" * (size * filled)
        lines.append(f"    assign m_axis_tkeep = m_axis_tlast ? {size * lanes}'b{partial} : {size * lanes}'b{full};")
    else:
        kept, copies = _keep(wired, side, "output", lanes)
        wired.connect(side.keep, "output", kept, "kept")
        lines.append(f"    wire {_span(kept)}kept;")
        for lane in range(lanes):
            low = copies * (lane if side.low_first else lanes - 1 - lane)
            value = f"{{{size}{{&kept[{low + copies - 1}:{low}]}}}}"
            lines.append(f"    assign m_axis_tkeep[{size * (lane + 1) - 1}:{size * lane}] = {value};")
    return lines


def _framing(wired: _Wiring, side: Side, lanes: int, row_lengths: Sequence[int]) -> tuple[int, int]:
    """Beats of a row, and elements in the last one, where `last` or `keep` must be made from them."""
    shapes = {(-(-length // lanes), (length - 1) % lanes + 1) for length in row_lengths}
    beats, filled = next(iter(shapes))
    if side.last is None and len(shapes) > 1:
        lengths = ", ".join(map(str, sorted(set(row_lengths))))
        raise HwsimError(
            f"{wired.ports.path}: output.last is missing, and rows differ in length ({lengths}); choose a layer"
        )
    if side.keep is None and len({part for _, part in shapes}) > 1:
        raise HwsimError(
            f"{wired.ports.path}: output.keep is missing, and the last beats of rows differ; choose a layer"
        )
    return beats, filled


def _fits(wired: _Wiring, port: str, stride: int, width: int) -> None:
    if stride < width:
        raise HwsimError(
            f"{wired.ports.path}: element_bits of port {port} is {stride}, but an element has {width} bits; widen it"
        )


def _keep(wired: _Wiring, side: Side, direction: str, lanes: int) -> tuple[int, int]:
    """Width of a keep port, and its bits a lane: one, or one a byte."""
    assert side.keep is not None
    width = wired.width(side.keep, direction)
    if width % lanes:
        raise HwsimError(
            f"{wired.ports.path}: port {side.keep} of {wired.top} has {width} bits, which {lanes} lanes cannot share"
        )
    return width, width // lanes


def _joined(parts: Sequence[str], low_first: bool) -> str:
    """A concatenation; Verilog writes the highest part first."""
    return "{" + ", ".join(reversed(parts) if low_first else parts) + "}"


def _span(width: int) -> str:
    return f"[{width - 1}:0] "
