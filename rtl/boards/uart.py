# amaranth: UnusedElaboratable=no
"""A serial transmitter: 8 data bits, no parity, one stop bit."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

BITS_A_BYTE = 10


class UartTransmitter(wiring.Component):
    """Sends bytes.

    Parameters
    ----------
    divisor : int
        Clock cycles a bit.

    Attributes
    ----------
    i : In(stream of bytes)
    tx : Out(1)
    """

    def __init__(self, divisor: int):
        self.divisor = divisor
        super().__init__({"i": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # Start bit, data from the lowest bit, stop bit; ones follow.
        shift = Signal(BITS_A_BYTE, init=-1)
        to_go = Signal(range(BITS_A_BYTE + 1))
        timer = Signal(range(self.divisor))
        m.d.comb += [self.i.ready.eq(to_go == 0), self.tx.eq(shift[0])]
        with m.If(to_go == 0), m.If(self.i.valid):
            m.d.sync += [
                shift.eq(Cat(Const(0, 1), self.i.payload, Const(1, 1))),
                to_go.eq(BITS_A_BYTE),
                timer.eq(0),
            ]
        with m.Elif(timer == self.divisor - 1):
            m.d.sync += [shift.eq(Cat(shift[1:], Const(1, 1))), to_go.eq(to_go - 1), timer.eq(0)]
        with m.Else():
            m.d.sync += timer.eq(timer + 1)
        return m
