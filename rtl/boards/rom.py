# amaranth: UnusedElaboratable=no
"""Words in block RAM: read at an address, or played one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out


class Rom(wiring.Component):
    """Words that are there two enabled cycles after their address; bits that never change take no memory.

    Parameters
    ----------
    words : sequence of int
        At least one.
    width : int
        Bits a word.

    Attributes
    ----------
    enable : In(1)
    address : In
    data : Out(width)
    """

    latency = 2

    def __init__(self, words: Sequence[int], width: int):
        self.words, self.width = words, width
        super().__init__({"enable": In(1), "address": In(range(len(words))), "data": Out(width)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        changing = 0
        for word in self.words:
            changing |= word ^ self.words[0]
        places = [place for place in range(self.width) if changing >> place & 1]
        stored: dict[int, Value] = {}
        width = _block_width(len(self.words))
        for first in range(0, len(places), width):
            part = places[first : first + width]
            m.submodules[f"memory_{first // width}"] = cells = memory.Memory(
                shape=len(part),
                depth=len(self.words),
                init=[sum((word >> place & 1) << index for index, place in enumerate(part)) for word in self.words],
            )
            port = cells.read_port()
            m.d.comb += [port.addr.eq(self.address), port.en.eq(self.enable)]
            # Block RAM answers late in a cycle; a register keeps that out of what follows.
            register = Signal(len(part), name=f"data_{first // width}", reset_less=True)
            with m.If(self.enable):
                m.d.sync += register.eq(port.data)
            stored |= {place: register[index] for index, place in enumerate(part)}
        constant = self.words[0]
        m.d.comb += self.data.eq(Cat(stored.get(place, Const(constant >> place & 1, 1)) for place in range(self.width)))
        return m


def _block_width(depth: int) -> int:
    """Bits a word for which one block RAM is deep enough: to choose among several behind their late outputs is slow.

    The shapes of the ECP5's DP16KD: Lattice FPGA-TN-02204 (memory usage guide).
    """
    shapes = {512: 36, 1024: 18, 2048: 9, 4096: 4, 8192: 2, 16384: 1}
    return next((width for deepest, width in shapes.items() if depth <= deepest), 1)


class Player(wiring.Component):
    """Gives the words in order while `run` is high; after it was low, from the first one again.

    Parameters
    ----------
    words : sequence of int
    width : int

    Attributes
    ----------
    run : In(1)
    o : Out(stream of words)
    finished : Out(1)
        All were taken.
    """

    def __init__(self, words: Sequence[int], width: int):
        self.words, self.width = words, width
        super().__init__({"run": In(1), "o": Out(stream.Signature(width)), "finished": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.rom = rom = Rom(self.words, self.width)
        count = len(self.words)
        address = Signal(range(count))
        more = Signal(init=1)
        valid = Signal(Rom.latency)
        advance = Signal()
        m.d.comb += [
            advance.eq(~self.o.valid | self.o.ready),
            rom.enable.eq(advance),
            rom.address.eq(address),
            self.o.valid.eq(valid[-1]),
            self.o.payload.eq(rom.data),
        ]
        started = Signal()
        with m.If(~self.run):
            m.d.sync += [address.eq(0), more.eq(1), valid.eq(0), started.eq(0)]
        with m.Elif(advance):
            m.d.sync += [
                valid.eq(Cat(more, valid[:-1])),
                started.eq(1),
                address.eq(Mux(more, address + 1, address)),
            ]
            with m.If(address == count - 1):
                m.d.sync += [more.eq(0), address.eq(address)]
        m.d.comb += self.finished.eq(started & ~more & (valid == 0))
        return m
