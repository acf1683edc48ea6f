"""What a unit that passes over a row several times keeps between the passes."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Module, ShapeLike, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from rtl.delay import delay

# A row buffer reports to be nearly full this many beats early.
BUFFER_MARGIN = 8
# Depth of a row queue: one LUT RAM. It reports to be nearly full 4 values early.
ROW_QUEUE_DEPTH = 16


def block_ram(shape: ShapeLike, depth: int, init: Sequence[int] = (), *, always: bool = False) -> memory.Memory:
    """A memory of which no word is read in the cycle that writes it: block RAM without bypass logic around it.

    With `always` in block RAM however shallow it is, where synthesis would else take LUT RAM for a small one.
    """
    attributes: dict[str, int | str] = {"no_rw_check": 1}
    if always:
        attributes["ram_style"] = "block"
    return memory.Memory(shape=shape, depth=depth, init=init, attrs=attributes)


class RowBuffer(wiring.Component):
    """Ring of beats in block RAM; beats of a row can be read from a fixed time after its last one.

    One beat is written and one read a cycle, from row to row without a gap.

    Parameters
    ----------
    beat : data.Layout
        With a field ``last``.
    depth : int
        Beats held, a power of two of 16 or more.
    wait : int
        A row may be read from ``2 + wait`` cycles after the one that writes its last beat.

    Attributes
    ----------
    write : In(1)
        Write `write_beat` in this cycle.
    enable : In(1)
        The read side moves.
    fetch : In(1)
        Read the next beat of a complete row, if there is one.
    read_valid, read_beat : Out
        The beat fetched in the enabled cycle before.
    nearly_full : Out(1)
        Fewer than 9 beats are free. Up to 7 may still be written.
    """

    def __init__(self, beat: data.Layout, *, depth: int, wait: int) -> None:
        self.depth, self.wait = depth, wait
        super().__init__(
            {
                "write": In(1),
                "write_beat": In(beat),
                "enable": In(1),
                "fetch": In(1),
                "read_valid": Out(1),
                "read_beat": Out(beat),
                "nearly_full": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.beats = beats = block_ram(self.write_beat.shape(), self.depth)
        writer = beats.write_port()
        reader = beats.read_port()
        write_position = Signal(range(self.depth))
        read_position = Signal(range(self.depth))
        row_end = Signal(range(self.depth))  # position after the last complete row

        m.d.comb += [
            writer.addr.eq(write_position),
            writer.data.eq(self.write_beat),
            writer.en.eq(self.write),
        ]
        m.d.sync += write_position.eq(write_position + self.write)
        row_ended = delay(m, self.write & self.write_beat.last, "row_ended", 1 + self.wait, reset_less=False)
        end_position = delay(m, write_position, "end_position", self.wait)
        with m.If(row_ended):
            m.d.sync += row_end.eq(end_position)

        fetched = Signal()
        m.d.comb += [
            fetched.eq(self.fetch & (read_position != row_end)),
            reader.addr.eq(read_position),
            reader.en.eq(self.enable),
            self.read_beat.eq(reader.data),
        ]
        with m.If(self.enable):
            m.d.sync += [self.read_valid.eq(fetched), read_position.eq(read_position + fetched)]

        held = Signal(range(self.depth))
        m.d.comb += [
            held.eq(write_position - read_position),
            self.nearly_full.eq(held[BUFFER_MARGIN.bit_length() - 1 :].all()),
        ]
        return m


class RowQueue(wiring.Component):
    """Values of rows, in order: 16 words of LUT RAM, the oldest always visible.

    Parameters
    ----------
    shape : ShapeLike
        Of a value.

    Attributes
    ----------
    reserve : In(1)
        One more value will come.
    push : In(1)
        Append `value`, which was reserved before; it is visible from the next cycle on.
    value : In
    pop : In(1)
        Drop `oldest`.
    oldest : Out
    nearly_full : Out(1)
        12 or more values are there or reserved. Up to 3 may still be reserved.
    """

    def __init__(self, shape: ShapeLike) -> None:
        super().__init__(
            {
                "reserve": In(1),
                "push": In(1),
                "value": In(shape),
                "pop": In(1),
                "oldest": Out(shape),
                "nearly_full": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.values = values = memory.Memory(shape=self.value.shape(), depth=ROW_QUEUE_DEPTH, init=[])
        writer = values.write_port()
        reader = values.read_port(domain="comb")
        reserved = Signal(range(ROW_QUEUE_DEPTH))
        pushed = Signal(range(ROW_QUEUE_DEPTH))
        popped = Signal(range(ROW_QUEUE_DEPTH))
        waiting = Signal(range(ROW_QUEUE_DEPTH))
        m.d.comb += [
            writer.addr.eq(pushed),
            writer.data.eq(self.value),
            writer.en.eq(self.push),
            reader.addr.eq(popped),
            self.oldest.eq(reader.data),
            waiting.eq(reserved - popped),
            self.nearly_full.eq(waiting[2:].all()),
        ]
        m.d.sync += [
            reserved.eq(reserved + self.reserve),
            pushed.eq(pushed + self.push),
            popped.eq(popped + self.pop),
        ]
        return m
