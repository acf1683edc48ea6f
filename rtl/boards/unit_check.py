# amaranth: UnusedElaboratable=no
"""Checks one unit on the chip: loads its constants, plays activations, compares and counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth.hdl import Cat, ClockSignal, Instance, Module, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from rtl import axi
from rtl.boards.rom import Player, Rom
from rtl.delay import delay
from rtl.stream import StreamUnit

NUMBER_BITS = 24
"""Width of the counts; a unit without an answer gives up long before they wrap around."""

RESET_CYCLES = 16
PATIENCE = 1 << 16
"""Cycles without a transfer after which a unit counts as stuck; more than the longest row takes."""

SURPLUS_CYCLES = 256
"""Cycles after the last expected beat in which no other may come."""


@dataclass(frozen=True)
class Stimulus:
    """What one unit is given and must answer, as words of `rtl.axi`.

    Attributes
    ----------
    unit : StreamUnit
        Loadable; its Verilog module is called by its kind.
    layer : str
        Where the activations come from.
    writes : sequence of int
        ``s_axis_write_tdata``.
    beats, expected : sequence of int
        From the lowest bit: tdata, tkeep, tlast.
    """

    unit: StreamUnit
    layer: str
    writes: Sequence[int]
    beats: Sequence[int]
    expected: Sequence[int]

    @property
    def kind(self) -> str:
        return self.unit.spec.kind

    @property
    def elements(self) -> int:
        """Results to compare: the kept lanes of all expected beats."""
        width = self.widths["m_axis_tdata"]
        return sum(
            (word >> width + self.element_bytes * lane) & 1 for word in self.expected for lane in range(self.lanes)
        )

    @property
    def lanes(self) -> int:
        """Results a beat."""
        return len(self.unit.o.payload.keep)

    @property
    def element_bytes(self) -> int:
        """Bytes of a result."""
        return self.widths["m_axis_tkeep"] // self.lanes

    @property
    def widths(self) -> dict[str, int]:
        """Bits of each port of the unit."""
        return {port.name: port.width for port in axi.ports(self.unit)}


class UnitCheck(wiring.Component):
    """Resets a unit, loads its constants, plays its activations at full rate and counts.

    Parameters
    ----------
    stimulus : Stimulus

    Attributes
    ----------
    start : In(1)
        Heard while no check is under way.
    done, passed : Out(1)
    mismatches : Out(unsigned)
        Elements that differ or did not come, and beats that came unasked. A beat whose `tlast` or
        `tkeep` is wrong makes all its elements wrong.
    cycles : Out(unsigned)
        From the first beat taken to the last one given, both included.
    """

    def __init__(self, stimulus: Stimulus):
        self.stimulus = stimulus
        super().__init__(
            {
                "start": In(1),
                "done": Out(1),
                "passed": Out(1),
                "mismatches": Out(unsigned(NUMBER_BITS)),
                "cycles": Out(unsigned(NUMBER_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        stimulus, widths = self.stimulus, self.stimulus.widths
        signals = {name: Signal(width, name=name) for name, width in widths.items() if not name.startswith("a")}
        running, resetn = Signal(), Signal()
        m.submodules.unit = Instance(
            stimulus.kind,
            ("i", "aclk", ClockSignal()),
            ("i", "aresetn", resetn),
            *(
                ("i" if port.direction == "input" else "o", port.name, signals[port.name])
                for port in axi.ports(stimulus.unit)
                if port.name in signals
            ),
        )
        m.submodules.writes = writes = Player(stimulus.writes, widths["s_axis_write_tdata"])
        m.submodules.beats = beats = Player(stimulus.beats, widths["s_axis_tdata"] + widths["s_axis_tkeep"] + 1)
        m.d.comb += [
            signals["s_axis_write_tdata"].eq(writes.o.payload),
            signals["s_axis_write_tvalid"].eq(writes.o.valid),
            writes.o.ready.eq(signals["s_axis_write_tready"]),
            Cat(signals["s_axis_tdata"], signals["s_axis_tkeep"], signals["s_axis_tlast"]).eq(beats.o.payload),
            signals["s_axis_tvalid"].eq(beats.o.valid),
            beats.o.ready.eq(signals["s_axis_tready"]),
            signals["m_axis_tready"].eq(1),
        ]
        taken = signals["s_axis_tvalid"] & signals["s_axis_tready"]
        given = signals["m_axis_tvalid"]

        count = len(stimulus.expected)
        number, complete, began = Signal(range(count + 1)), Signal(), Signal()
        with m.If(running):
            with m.If(given & ~complete):
                m.d.sync += [number.eq(number + 1), complete.eq(number == count - 1)]
            m.d.sync += began.eq(began | taken)
            with m.If((began | taken) & ~complete):
                m.d.sync += self.cycles.eq(self.cycles + 1)
        matched, surplus = self._compare(m, signals, number, complete, running & given)

        timer = Signal(range(PATIENCE))
        with m.FSM():
            with m.State("IDLE"), m.If(self.start):
                m.d.sync += [self.done.eq(0), self.passed.eq(0), timer.eq(0)]
                m.next = "RESET"
            with m.State("RESET"):
                m.d.sync += [timer.eq(timer + 1), *(signal.eq(0) for signal in (number, complete, began, self.cycles))]
                m.d.sync += [matched.eq(0), surplus.eq(0)]
                with m.If(timer == RESET_CYCLES):
                    m.d.sync += resetn.eq(1)
                    m.next = "LOAD"
            with m.State("LOAD"):
                m.d.comb += writes.run.eq(1)
                m.d.sync += timer.eq(0)
                with m.If(writes.finished):
                    m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += [beats.run.eq(1), running.eq(1)]
                m.d.sync += timer.eq(timer + 1)
                with m.If(~complete & (taken | given)):
                    m.d.sync += timer.eq(0)
                with m.If((timer == PATIENCE - 1) | (complete & (timer == SURPLUS_CYCLES - 1))):
                    m.next = "COUNT"
            with m.State("COUNT"):
                m.d.sync += [
                    resetn.eq(0),
                    self.mismatches.eq(stimulus.elements - matched + surplus),
                    self.passed.eq((matched == stimulus.elements) & (surplus == 0)),
                    self.done.eq(1),
                ]
                m.next = "IDLE"
        return m

    def _compare(
        self, m: Module, signals: dict[str, Signal], number: Signal, complete: Signal, given: Signal
    ) -> tuple[Signal, Signal]:
        """Counts of elements that are as expected, and of beats past the last one."""
        m.submodules.expected = rom = Rom(self.stimulus.expected, self._width)
        beat = Cat(signals["m_axis_tdata"], signals["m_axis_tkeep"], signals["m_axis_tlast"])
        m.d.comb += [rom.address.eq(number), rom.enable.eq(1)]
        due = given & ~complete
        beat, due = delay(m, beat, "beat", Rom.latency), delay(m, due, "due", Rom.latency, reset_less=False)
        size, lanes = self.stimulus.element_bytes, self.stimulus.lanes
        flags = 8 * size * lanes
        framed = Signal()
        equal, kept = Signal(lanes), Signal(lanes)
        m.d.sync += framed.eq(due & (beat[flags:] == rom.data[flags:]))
        for lane in range(lanes):
            place = slice(8 * size * lane, 8 * size * (lane + 1))
            m.d.sync += [equal[lane].eq(beat[place] == rom.data[place]), kept[lane].eq(rom.data[flags + size * lane])]
        matched, surplus = Signal(NUMBER_BITS, name="matched"), Signal(NUMBER_BITS, name="surplus")
        with m.If(framed):
            m.d.sync += matched.eq(matched + sum(equal[lane] & kept[lane] for lane in range(lanes)))
        with m.If(given & complete):
            m.d.sync += surplus.eq(surplus + 1)
        return matched, surplus

    @property
    def _width(self) -> int:
        """Bits of an expected beat."""
        return self.stimulus.widths["m_axis_tdata"] + self.stimulus.widths["m_axis_tkeep"] + 1
