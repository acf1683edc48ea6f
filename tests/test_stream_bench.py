"""The bench must notice units that break the stream contract."""

import pytest
from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from stream_bench import Phase, run

from rtl.stream import row_signature

ROWS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]


class Faulty(wiring.Component):
    """Passes beats on through one register, with the named fault."""

    def __init__(self, fault=""):
        self.fault = fault
        super().__init__({"i": In(row_signature(8, 2)), "o": Out(row_signature(8, 2))})

    def elaborate(self, platform):
        m = Module()
        held, payload = Signal(), Signal.like(self.i.payload)
        m.d.comb += [self.i.ready.eq(~held | self.o.ready), self.o.valid.eq(held), self.o.payload.eq(payload)]
        with m.If(self.i.ready):
            m.d.sync += [held.eq(self.i.valid), payload.eq(self.i.payload)]
        count = Signal(4)
        m.d.sync += count.eq(count + 1)
        if self.fault == "changes":
            m.d.comb += self.o.payload.data[0].eq(payload.data[0] ^ count[0])
        if self.fault == "falls":
            m.d.comb += self.o.valid.eq(held & count[0])
            m.d.comb += self.i.ready.eq(~held | (self.o.ready & count[0]))
        if self.fault == "waits":
            m.d.comb += self.o.valid.eq(held & self.o.ready)
        if self.fault == "holes":
            m.d.comb += self.o.payload.keep.eq(0b10)
        if self.fault == "partial":
            m.d.comb += self.o.payload.keep.eq(Mux(payload.last, payload.keep, 0b01))
        if self.fault == "loses":
            m.d.comb += self.o.valid.eq(held & (payload.data[0] != 4))
        return m


@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_a_good_unit_passes(stall):
    (rows,) = run(Faulty(), [Phase(ROWS)], stall_in=stall, stall_out=stall)
    assert [row.elements for row in rows] == ROWS
    if not stall:
        assert [row.out_cycles for row in rows] == [[1, 2], [3], [4, 5, 6]]
        assert [(row.first_in, row.last_in) for row in rows] == [(0, 1), (2, 2), (3, 5)]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("changes", "payload changed"),
        ("falls", "valid fell"),
        ("waits", "no beat went in or out"),
        ("holes", "does not fill from lane 0"),
        ("partial", "partial before the last beat"),
        ("loses", "no beat went in or out"),
    ],
)
def test_a_faulty_unit_is_noticed(fault, message):
    with pytest.raises(AssertionError, match=message):
        run(Faulty(fault), [Phase(ROWS * 4)], stall_in=0.3, stall_out=0.5, patience=200)
