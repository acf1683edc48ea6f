# amaranth: UnusedElaboratable=no
"""The formal bench: free streams around an exported unit, what they may do, and what the unit must do then.

The unit is the Verilog of `rtl.verilog.export` as it is shipped, driven at its AXI4-Stream ports. Every input is
free in every cycle: offers and their payload, `tready`, `aresetn`, and, while no row is inside, writes of constants.
Assumed is only what AXI4-Stream asks of a sender (an offer stays until it is taken) and what
`rtl.stream` says of rows (lanes fill from 0, only the last beat is partial).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from amaranth.back import rtlil
from amaranth.hdl import Assert, Assume, Cat, ClockDomain, Const, Cover, Instance, Module, Mux, Shape, Signal, Value
from amaranth.hdl._ast import AnyConst, AnySeq

from rtl import axi
from rtl.stream import StreamUnit
from sim_tests.beats import words_of
from sim_tests.formal.rows import Framing, Table

UNIT = "unit"
BENCH = "bench"


@dataclass
class Bench:
    """A bench around `unit`.

    Parameters
    ----------
    unit : StreamUnit
    framing : Framing
    rows : int
        Rows that may enter.
    longest : int
        Beats that a row may have.
    table : Table, optional
        Compare every output with it.
    writes : sequence of (int, int), optional
        Constants to be written before the first row; there is no reset then. Without them a loadable
        unit gets any writes while no row is inside.
    resets : bool
        Resets may come at any time.
    stalls : sequence of {"sender", "receiver"}
        Who may wait: the sender with its next offer, the receiver before it takes one.
    """

    unit: StreamUnit
    framing: Framing
    rows: int
    longest: int
    table: Table | None = None
    writes: Sequence[tuple[int, int]] = ()
    resets: bool = True
    stalls: Sequence[str] = ("sender", "receiver")
    m: Module = field(default_factory=Module, init=False)

    def __post_init__(self) -> None:
        self.lanes = self.unit.lanes
        self.ports = {port.name: Signal(port.width, name=port.name) for port in axi.ports(self.unit)}

    def rtlil(self, *, stability_only: bool = False) -> str:
        """The bench as RTLIL; the unit in it is the module `UNIT`.

        With `stability_only`, everything is free, the sender too, and only the stability of offers is claimed.
        """
        m, port = self.m, self.ports
        clock = Signal(name="clk")
        m.domains.sync = domain = ClockDomain("sync")
        domain.clk = clock
        m.d.comb += domain.rst.eq(~port["aresetn"])
        connections = {
            f"{'i' if described.direction == 'input' else 'o'}_{name}": clock if name == "aclk" else port[name]
            for name, described in ((described.name, described) for described in axi.ports(self.unit))
        }
        m.submodules.unit = Instance(UNIT, **connections)
        for name in ("s_axis_tdata", "s_axis_tkeep", "s_axis_tlast", "s_axis_tvalid", "m_axis_tready", "aresetn"):
            m.d.comb += port[name].eq(AnySeq(len(port[name])))
        if stability_only:
            self._stable()
            if self.unit.loadable:
                for name in ("s_axis_write_tdata", "s_axis_write_tvalid"):
                    m.d.comb += port[name].eq(AnySeq(len(port[name])))
            return rtlil.convert(m, name=BENCH, ports=[clock], emit_src=False)
        self._count_in()
        self._count_out()
        self._assume_sender()
        self._constants()
        self._stable()
        self._framed()
        self._delivered()
        if self.table is not None:
            self._equal(self.table)
        self._cover()
        return rtlil.convert(m, name=BENCH, ports=[clock], emit_src=False)

    # Counting.

    def _lanes_kept(self, prefix: str) -> tuple[Value, Value]:
        """Lanes kept of a beat, and whether its keep is well formed: whole lanes, filled from 0, at least one."""
        keep = self.ports[f"{prefix}_tkeep"]
        size = len(keep) // self._lanes_of(prefix)
        lanes = [keep[start : start + size] for start in range(0, len(keep), size)]
        kept = Cat(lane.all() for lane in lanes)
        whole = ~Cat(lane.any() ^ lane.all() for lane in lanes).any()
        filled = kept[0] & ~(kept[1:] & ~kept[:-1]).any() if len(kept) > 1 else kept[0]
        return kept, whole & filled

    def _lanes_of(self, prefix: str) -> int:
        stream = self.unit.i if prefix == "s_axis" else self.unit.o
        return len(stream.payload.keep)

    def _count_in(self) -> None:
        m, port = self.m, self.ports
        self.taken = Signal()
        self.row_in = Signal(range(self.rows + 1))
        self.beat_in = Signal(range(self.longest + 1))
        self.ends_in = Signal()
        self.dropping = Signal()
        last = port["s_axis_tlast"]
        full = self.beat_in == self.framing.beats_in - 1 if self.framing.beats_in else Const(0, 1)
        m.d.comb += [
            self.taken.eq(port["s_axis_tvalid"] & port["s_axis_tready"] & port["aresetn"]),
            self.ends_in.eq(self.taken & ~self.dropping & (last | full)),
        ]
        with m.If(self.taken):
            with m.If(self.dropping):
                m.d.sync += self.dropping.eq(~last)
            with m.Else():
                m.d.sync += self.beat_in.eq(Mux(self.ends_in, 0, self.beat_in + 1))
                if self.framing.drops_surplus:
                    m.d.sync += self.dropping.eq(self.ends_in & ~last)
        with m.If(self.ends_in):
            m.d.sync += self.row_in.eq(self.row_in + 1)

    def _count_out(self) -> None:
        m, port = self.m, self.ports
        self.given = Signal()
        self.row_out = Signal(range(self.rows + 1))
        self.beat_out = Signal(range(max(self.longest, self.framing.beats_out or 0) + 1))
        m.d.comb += self.given.eq(port["m_axis_tvalid"] & port["m_axis_tready"] & port["aresetn"])
        with m.If(self.given):
            m.d.sync += self.beat_out.eq(Mux(port["m_axis_tlast"], 0, self.beat_out + 1))
            with m.If(port["m_axis_tlast"]):
                m.d.sync += self.row_out.eq(self.row_out + 1)

    # Assumptions.

    def _held(self, prefix: str) -> Value:
        """Whether an offer that was not taken in the cycle before still stands, unchanged."""
        m, port = self.m, self.ports
        waiting = Signal(name=f"{prefix}_waiting")
        payload = Cat(port[f"{prefix}_t{name}"] for name in ("data", "keep", "last"))
        offered = Signal(len(payload), name=f"{prefix}_offered")
        m.d.sync += [
            waiting.eq(port[f"{prefix}_tvalid"] & ~port[f"{prefix}_tready"]),
            offered.eq(payload),
        ]
        return ~waiting | (port[f"{prefix}_tvalid"] & (payload == offered))

    def _assume_sender(self) -> None:
        m, port = self.m, self.ports
        kept, well_formed = self._lanes_kept("s_axis")
        valid, last = port["s_axis_tvalid"], port["s_axis_tlast"]
        length = Signal(range(self.longest + 1), name="beats_offered")
        with m.If(self.taken):
            m.d.sync += length.eq(Mux(last, 0, length + 1))
        m.d.comb += [
            Assume(self._held("s_axis")),
            Assume(~valid | (well_formed & (last | kept.all()))),
            Assume(~valid | (self.row_in != self.rows) | self.dropping),
            Assume(~valid | last | (length < self.longest - 1)),
        ]
        if not self.resets:
            m.d.comb += Assume(port["aresetn"])
        if "sender" not in self.stalls:
            loading = port["s_axis_write_tvalid"] if self.unit.loadable else 0
            m.d.comb += Assume(valid | (self.row_in == self.rows) | loading)
        if "receiver" not in self.stalls:
            m.d.comb += Assume(port["m_axis_tready"])

    def _constants(self) -> None:
        m, port = self.m, self.ports
        if not self.unit.loadable:
            return
        data, valid = port["s_axis_write_tdata"], port["s_axis_write_tvalid"]
        if not self.writes:
            inside = (self.row_in != self.row_out) | (self.beat_in != 0) | (self.beat_out != 0) | self.dropping
            m.d.comb += [
                data.eq(AnySeq(len(data))),
                valid.eq(AnySeq(1)),
                Assume(~valid | ~(inside | port["s_axis_tvalid"])),
            ]
            return
        payload = self.unit.w.payload
        words = words_of(self.writes, len(payload.address), len(payload.data))
        number = Signal(range(len(words) + 1), name="word_number")
        with m.If(valid):
            m.d.sync += number.eq(number + 1)
        m.d.comb += [valid.eq(number != len(words)), Assume(~valid | ~port["s_axis_tvalid"])]
        with m.Switch(number):
            for index, word in enumerate(words):
                with m.Case(index):
                    m.d.comb += data.eq(int.from_bytes(word.tobytes(), "little"))

    # Guarantees.

    def _assert(self, claim: Value, name: str) -> None:
        self.m.d.comb += Assert(~self.ports["aresetn"] | claim, name)

    def _stable(self) -> None:
        self._assert(self._held("m_axis"), "an offer stays, unchanged, until it is taken")

    def _framed(self) -> None:
        m, port = self.m, self.ports
        valid, last = port["m_axis_tvalid"], port["m_axis_tlast"]
        kept, well_formed = self._lanes_kept("m_axis")
        self._assert(~valid | (well_formed & (last | kept.all())), "lanes fill from 0, only the last beat is partial")
        self._assert(~valid | self._padded(), "padding repeats the sign, else is 0")
        if self.framing.beats_out is None:
            # Beats come out as they went in: any one beat is followed.
            row, beat = AnyConst(range(self.rows)), AnyConst(range(self.longest))
            row, beat = self._named(row, "followed_row"), self._named(beat, "followed_beat")
            kept_in, _ = self._lanes_kept("s_axis")
            seen, seen_last = Signal(name="followed_in"), Signal(name="followed_last")
            seen_keep = Signal(len(kept), name="followed_keep")
            with m.If(self.taken & (self.row_in == row) & (self.beat_in == beat)):
                m.d.sync += [seen.eq(1), seen_last.eq(self.ends_in), seen_keep.eq(kept_in)]
            here = valid & (self.row_out == row) & (self.beat_out == beat)
            self._assert(~here | seen, "no beat comes out that did not go in")
            self._assert(~here | (last == seen_last), "last marks the beat of the row that it marked at the input")
            self._assert(~here | (kept == seen_keep), "a beat keeps its lanes")
            return
        self._assert(~valid | (self.row_out < self.row_in), "no row comes out that did not go in")
        self._assert(~valid | (last == (self.beat_out == self.framing.beats_out - 1)), "last marks the last beat")
        if self.framing.last_lanes is not None:
            lanes = (1 << self.framing.last_lanes) - 1
            self._assert(~(valid & last) | (kept == lanes), "the last beat keeps its lanes")

    def _padded(self) -> Value:
        """Whether the padding of output elements is what `rtl.axi` says."""
        data = self.ports["m_axis_tdata"]
        shape = Shape.cast(axi.element_of(self.unit.o.payload))
        size = 8 * axi.padded_bytes(shape.width)
        padding = [data[start + shape.width : start + size] for start in range(0, len(data), size)]
        signs = [data[start + shape.width - 1] for start in range(0, len(data), size)]
        if not size - shape.width:
            return Const(1, 1)
        kept, _ = self._lanes_kept("m_axis")
        fits = [
            ~keep | Mux(sign, pad.all(), ~pad.any()) if shape.signed else ~keep | ~pad.any()
            for keep, pad, sign in zip(kept, padding, signs, strict=True)
        ]
        return Cat(fits).all()

    @property
    def quiet_cycles(self) -> int:
        """Cycles without an offer and with `tready` after which every row is out."""
        worst = max(self.unit.cycles_per_row(length) for length in range(1, self.longest * self.lanes + 1))
        return self.unit.latency + self.rows * max(worst, self.longest, self.framing.beats_out or 0)

    def _delivered(self) -> None:
        """The first result is offered in time, whether or not anybody is ready; nothing stays inside."""
        m, port = self.m, self.ports
        waited = Signal(range(self.unit.latency + 1))
        with m.If((self.ends_in & (self.row_in == 0)) | ((waited != 0) & (waited != self.unit.latency))):
            m.d.sync += waited.eq(waited + 1)
        offered = Signal()
        with m.If(port["m_axis_tvalid"]):
            m.d.sync += offered.eq(1)
        self._assert(
            (waited != self.unit.latency) | offered | port["m_axis_tvalid"],
            "the first result is offered in time, ready or not",
        )
        quiet = Signal(range(self.quiet_cycles + 1))
        idle = port["m_axis_tready"] & ~port["s_axis_tvalid"]
        if self.unit.loadable:
            idle &= ~port["s_axis_write_tvalid"]
        m.d.sync += quiet.eq(Mux(idle, Mux(quiet == self.quiet_cycles, quiet, quiet + 1), 0))
        whole = (self.beat_in == 0) & (quiet == self.quiet_cycles)
        self._assert(~whole | (self.row_in == self.row_out), "no row stays inside")

    def _cover(self) -> None:
        """Traces that show the assumptions to leave room: all rows through, with every kind of stall there is."""
        m, port = self.m, self.ports
        waits = {
            "sender": ~port["s_axis_tvalid"] & ((self.beat_in != 0) | (self.row_in != 0)) & (self.row_in != self.rows),
            "receiver": port["m_axis_tvalid"] & ~port["m_axis_tready"],
        }
        seen = Signal(len(self.stalls))
        m.d.sync += seen.eq(seen | Cat(waits[side] for side in self.stalls))
        claim = f"all rows out, with stalls of {' and '.join(self.stalls) or 'nobody'}"
        m.d.comb += Cover((self.row_out == self.rows) & seen.all(), claim)

    def _named(self, value: Value, name: str) -> Signal:
        """A free value as a signal, so that a trace shows it."""
        signal = Signal(len(value), name=name)
        self.m.d.comb += signal.eq(value)
        return signal

    def _equal(self, table: Table) -> None:
        m, port = self.m, self.ports
        longest = max(table.lengths)
        width = Shape.cast(axi.element_of(self.unit.i.payload)).width
        elements = self._elements("s_axis", width)
        kept, _ = self._lanes_kept("s_axis")
        lanes_in = self._lanes_of("s_axis")
        count = sum(kept[lane] for lane in range(lanes_in))
        ends = Signal(range(longest + lanes_in + 1), name="length_offered")
        m.d.comb += ends.eq(self.beat_in * lanes_in + count)
        allowed = Cat(ends == length for length in table.lengths).any()
        m.d.comb += Assume(~(port["s_axis_tvalid"] & port["s_axis_tlast"]) | allowed)
        if table.inputs:
            for lane, element in enumerate(elements):
                known = Cat(element == pattern for pattern in table.inputs).any()
                m.d.comb += Assume(~(port["s_axis_tvalid"] & kept[lane]) | known)

        followed = self._named(AnyConst(range(self.rows)), "compared_row")
        out_width = Shape.cast(axi.element_of(self.unit.o.payload)).width
        found = self._elements("m_axis", out_width)
        kept_out, _ = self._lanes_kept("m_axis")
        here = port["m_axis_tvalid"] & (self.row_out == followed)
        lanes_out = self._lanes_of("m_axis")
        if table.elementwise:
            place = self._named(AnyConst(range(table.places_out)), "compared_place")
            stored = Signal(width, name="stored_element")
            for lane, element in enumerate(elements):
                at = self.beat_in * lanes_in + lane
                with m.If(self.taken & (self.row_in == followed) & (at == place) & kept[lane]):
                    m.d.sync += stored.eq(element)
            expected = self._case(
                Cat(stored, place),
                {place << width | bits: out for (place, bits), out in table.outputs.items()},
                out_width,
            )
            for lane, result in enumerate(found):
                at = self.beat_out * lanes_out + lane
                self._assert(~(here & (at == place) & kept_out[lane]) | (result == expected), "equal to the reference")
            return
        row = Signal(width * longest, name="stored_row")
        length = Signal(range(longest + 1), name="stored_length")
        for at in range(longest):
            lane, beat = at % lanes_in, at // lanes_in
            with m.If(self.taken & (self.row_in == followed) & (self.beat_in == beat)):
                m.d.sync += row.word_select(at, width).eq(Mux(kept[lane], elements[lane], 0))
        with m.If(self.ends_in & (self.row_in == followed)):
            m.d.sync += length.eq(ends)
        # A shorter row leaves what was there before in the places that it lacks.
        places = table.places_out
        cases = {length << width * longest | bits: out for (length, bits), out in table.outputs.items()}
        used = Cat(Cat(*(row.word_select(at, width) & (at < length).replicate(width) for at in range(longest))), length)
        expected = self._case(used, cases, out_width * places)
        for at in range(places):
            lane, beat = at % lanes_out, at // lanes_out
            given = here & (self.beat_out == beat) & kept_out[lane]
            self._assert(~given | (found[lane] == expected.word_select(at, out_width)), "equal to the reference")

    def _elements(self, prefix: str, width: int) -> list[Value]:
        data = self.ports[f"{prefix}_tdata"]
        size = 8 * axi.padded_bytes(width)
        return [data[start : start + width] for start in range(0, len(data), size)]

    def _case(self, selector: Value, cases: dict[int, int], width: int) -> Signal:
        expected = Signal(width, name="expected")
        with self.m.Switch(selector):
            for pattern, value in cases.items():
                with self.m.Case(pattern):
                    self.m.d.comb += expected.eq(value)
        return expected
