# amaranth: UnusedElaboratable=no
"""AdaLog decoder: codes to fixed point by two tables and a shift."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from amaranth.hdl import Cat, Module, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from golden.adalog import AdaLogDecodeSpec
from golden.spec import Constants
from rtl.adalog_tables import AdaLogTables, check_covered, cut_bits, table_entries
from rtl.arithmetic import round_half_even_shift
from rtl.left_shifter import LeftShifter
from rtl.pipeline import Pipeline
from rtl.stream import check_equal, row_signature, shape_of, write_signature


class AdaLogDecode(wiring.Component):
    """``round_half_even(mantissa[code] * 2**guard_bits / 2**shift[code])``, as `AdaLogDecodeSpec.compute`.

    The path: read both tables; shift the mantissa left, two bits of the distance a stage,
    see `AdaLogTables`; round what is to be cut off, in a stage that is left out where the guard
    bits make the shift lossless.

    * Throughput: 1 beat a cycle; a row of N elements takes ``ceil(N / lanes)`` cycles.
    * Latency: 2 cycles, one for every two bits of the largest left shift, one to round.
    * Rows of any length pass; rows do not matter to this unit.

    Parameters
    ----------
    spec : AdaLogDecodeSpec
    lanes : int
        Elements a beat.
    constants : dict, optional
        Baked-in tables. Without them the unit has a write port ``w``, that of
        `AdaLogTables`. It may be written while no row is inside.

    Attributes
    ----------
    i : In(stream), elements of `code_bits` + 1
    o : Out(stream), elements of `code_bits` + 1 + `guard_bits`
        A layer of fewer guard bits than the unit's gives its own, smaller, numbers.
    w : In(stream), only without `constants`
    """

    equal_fields = ("code_bits",)

    def __init__(self, spec: AdaLogDecodeSpec, *, lanes: int = 1, constants: Constants | None = None):
        self.spec, self.lanes = spec, lanes
        self.loadable = constants is None
        # A mantissa shifted right by one bit more than it has is below one half: it rounds to 0 from there on.
        self._limit = spec.code_bits + 2
        self._cut_bits = cut_bits(spec, self._limit)
        self._tables = AdaLogTables(
            spec.code_bits,
            guard_bits=spec.guard_bits,
            cut_bits=self._cut_bits,
            ports=lanes,
            entries=None if constants is None else table_entries(spec, spec.check_constants(constants), self._cut_bits),
        )
        self._shifters = [
            LeftShifter(unsigned(spec.code_bits + 1), lanes=1, largest=self._tables.largest_left_shift)
            for _ in range(lanes)
        ]
        ports = {
            "i": In(row_signature(shape_of(spec.input), lanes)),
            "o": Out(row_signature(shape_of(spec.output), lanes)),
        }
        if self.loadable:
            ports["w"] = In(write_signature(spec.code_bits, self._tables.entry.size))
        super().__init__(ports)

    @classmethod
    def covering(cls, layers: Sequence[tuple[AdaLogDecodeSpec, Constants]], *, lanes: int = 1) -> AdaLogDecode:
        """The loadable unit with the most guard bits and the farthest cut of the layers.

        Raises
        ------
        HwsimError
            The layers differ in a field of `equal_fields`.
        """
        specs = [spec for spec, _ in layers]
        check_equal(specs, cls.equal_fields)
        guard_bits = max(spec.guard_bits for spec in specs)
        farthest = max(cut_bits(spec, spec.code_bits + 2) for spec in specs)
        spec = dataclasses.replace(specs[0], guard_bits=guard_bits, largest_shift=guard_bits + farthest)
        return cls(spec, lanes=lanes)

    @property
    def parameters(self) -> dict[str, int]:
        """Hardware parameters beyond the spec."""
        return {"lanes": self.lanes}

    @property
    def latency(self) -> int:
        return self._tables.latency + self._shifters[0].latency + (self._cut_bits > 0)

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """Write addresses and what lies there."""
        return [("code", self._tables.word)]

    def cycles_per_row(self, length: int) -> int:
        """``ceil(length / lanes)``."""
        return -(-length // self.lanes)

    def writes(self, spec: AdaLogDecodeSpec, constants: Constants) -> list[tuple[int, int]]:
        """Address and data of a layer's tables.

        Raises
        ------
        HwsimError
            The unit does not cover the layer.
        """
        check_equal([self.spec, spec], self.equal_fields)
        check_covered(spec, self.spec, self._limit)
        return self._tables.writes(spec, constants)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.tables = tables = self._tables
        pipeline = Pipeline(m, self.i, self.o, self.latency)
        m.d.comb += [tables.enable.eq(pipeline.advance), tables.codes.eq(self.i.payload.data)]
        if self.loadable:
            m.d.comb += [tables.w.payload.eq(self.w.payload), tables.w.valid.eq(self.w.valid)]

        for lane, shifter in enumerate(self._shifters):
            m.submodules[f"shifter_{lane}"] = shifter
            entry = tables.entries[lane]
            m.d.comb += [
                shifter.enable.eq(pipeline.advance),
                shifter.values[0].eq(entry.mantissa),
                shifter.amount.eq(entry.left_shift),
            ]
            shifted = shifter.shifted[0]
            if not self._cut_bits:
                m.d.comb += self.o.payload.data[lane].eq(shifted)
                continue
            # Where a bit is cut off, the result is no longer than a mantissa: the carry ends there.
            carry_end = self._cut_bits + self.spec.code_bits + 1
            low = round_half_even_shift(shifted[:carry_end], self._cut_bits)
            rounded = Signal(self.spec.output.bits, name=f"lane{lane}_rounded", reset_less=True)
            with m.If(pipeline.advance):
                m.d.sync += rounded.eq(Cat(low[: self.spec.code_bits + 1], shifted[carry_end:]))
            m.d.comb += self.o.payload.data[lane].eq(rounded)
        m.d.comb += [
            self.o.payload.keep.eq(pipeline.delay(self.i.payload.keep, self.latency, "keep")),
            self.o.payload.last.eq(pipeline.delay(self.i.payload.last, self.latency, "last")),
        ]
        return m
