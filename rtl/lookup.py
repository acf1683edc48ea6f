# amaranth: UnusedElaboratable=no
"""Lookup: a table from input code to output code, loadable at run time; serves GELU."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from golden.lookup import LookupSpec
from golden.spec import Constants
from rtl.stream import check_equal, row_signature, shape_of, write_signature


class Lookup(wiring.Component):
    """``output = table[channel, input]``, a beat a cycle.

    Two lanes share one block RAM of ``channels << input_bits`` words: the first reads
    through the port that also writes, the second through the other one. The word goes
    through a register, so that no block RAM delay adds to the logic behind the unit.

    * Throughput: 1 beat a cycle; a row of N elements takes ``ceil(N / lanes)`` cycles.
    * Latency: 2 cycles from a beat taken to its result.
    * Order of writes and beats: a write takes the cycle, beats wait for it; so every beat
      sees the writes before it and none after it, and the table may be loaded between any two beats.
    * With several channels, element n of a row uses the table of channel n, and a row has at most
      `channels` elements; a longer one starts at channel 0 again after ``ceil(channels / lanes)`` beats,
      and lanes past the last channel give 0.

    Parameters
    ----------
    spec : LookupSpec
    lanes : int
        Elements a beat.
    constants : dict, optional
        Baked-in table. Without it the unit has a write port ``w``: the address is
        ``channel << input_bits | code``, the data is the output code.

    Attributes
    ----------
    i : In(stream), elements of `input_bits`
    o : Out(stream), elements of `output_bits`
    w : In(stream), only without `constants`
    """

    latency = 2
    equal_fields = ("input_bits", "output_bits", "channels")

    def __init__(self, spec: LookupSpec, *, lanes: int = 1, constants: Constants | None = None):
        self.spec, self.lanes = spec, lanes
        self.loadable = constants is None
        self.address_bits = spec.input_bits + (spec.channels - 1).bit_length()
        self._words = None if constants is None else spec.check_constants(constants)["table"].reshape(-1).tolist()
        ports = {
            "i": In(row_signature(shape_of(spec.input), lanes)),
            "o": Out(row_signature(shape_of(spec.output), lanes)),
        }
        if self.loadable:
            ports["w"] = In(write_signature(self.address_bits, spec.output_bits))
        super().__init__(ports)

    @classmethod
    def covering(cls, layers: Sequence[tuple[LookupSpec, Constants]], *, lanes: int = 1) -> Lookup:
        """The loadable unit that serves all the layers, whose specs must be equal.

        Raises
        ------
        HwsimError
            The layers differ in a field of `equal_fields`.
        """
        specs = [spec for spec, _ in layers]
        check_equal(specs, cls.equal_fields)
        return cls(specs[0], lanes=lanes)

    @property
    def parameters(self) -> dict[str, int]:
        """Hardware parameters beyond the spec."""
        return {"lanes": self.lanes}

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """Write addresses and what lies there."""
        return [("channel << input_bits | code", "output code")]

    def cycles_per_row(self, length: int) -> int:
        """``ceil(length / lanes)``."""
        return -(-length // self.lanes)

    def writes(self, spec: LookupSpec, constants: Constants) -> list[tuple[int, int]]:
        """Address and data of every word of a layer's table."""
        return list(enumerate(constants["table"].reshape(-1).tolist()))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        loading = self.w.valid if self.loadable else Const(0, 1)

        # One enable moves both stages; a write takes a cycle of the memory ports.
        enable = Signal()
        m.d.comb += [
            enable.eq(self.o.ready | ~self.o.valid),
            self.i.ready.eq(enable & ~loading),
        ]
        beat = self.i.payload
        read_valid = Signal()
        read_keep = Signal(self.lanes)
        read_last = Signal()
        with m.If(enable):
            m.d.sync += [
                read_valid.eq(self.i.valid & ~loading),
                read_keep.eq(beat.keep),
                read_last.eq(beat.last),
                self.o.valid.eq(read_valid),
                self.o.payload.keep.eq(read_keep),
                self.o.payload.last.eq(read_last),
            ]

        # Channel of lane 0; it restarts with the row, or when a row goes on past the last channel.
        channel = Signal(range(self.spec.channels))
        final_beat = (self.spec.channels - 1) // self.lanes * self.lanes
        if final_beat:
            with m.If(self.i.valid & self.i.ready):
                m.d.sync += channel.eq(Mux(beat.last | (channel == final_beat), 0, channel + self.lanes))

        words = [] if self._words is None else self._words
        for first in range(0, self.lanes, 2):
            m.submodules[f"table_{first}"] = table = memory.Memory(
                shape=self.spec.output_bits, depth=1 << self.address_bits, init=words
            )
            for lane in range(first, min(first + 2, self.lanes)):
                address = Signal(self.address_bits, name=f"address_{lane}")
                m.d.comb += address.eq(Cat(beat.data[lane], channel + lane))
                reader = table.read_port()
                if self.loadable and lane == first:
                    writer = table.write_port()
                    with m.If(loading):
                        m.d.comb += address.eq(self.w.payload.address)
                    m.d.comb += [
                        writer.addr.eq(address),
                        writer.data.eq(self.w.payload.data),
                        writer.en.eq(loading),
                    ]
                m.d.comb += [reader.addr.eq(address), reader.en.eq(enable & ~loading)]
                with m.If(enable):
                    m.d.sync += self.o.payload.data[lane].eq(reader.data)
        return m
