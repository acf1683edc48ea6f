# amaranth: UnusedElaboratable=no
"""Matrix product on AdaLog codes: look up, multiply, shift, accumulate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from golden.adalog import AdaLogMatmulSpec
from golden.spec import Constants
from rtl.adalog_tables import AdaLogTables, check_covered, cut_bits, table_entries
from rtl.digit_multiplier import DigitMultiplier
from rtl.pipeline import Pipeline
from rtl.shift_accumulate import ShiftAccumulate, check_accumulator, widest_accumulator
from rtl.stream import check_equal, check_one_head, row_signature, shape_of, write_signature


class AdaLogMatmul(wiring.Component):
    """Sum of ``((mantissa[code] * (v - zero_v)) << guard_bits) >> shift[code]``; `AdaLogMatmulSpec.accumulate`.

    The path: read both tables, subtract ``zero_v``; multiply by the mantissa, one multiplier a
    lane; shift left, two bits of the distance a stage, see `AdaLogTables`; cut off below the guard
    bits, rounding down; add. The product has `product_bits`, the shifted one at most
    ``guard_bits`` and the cut bits more, the sum is as wide as the spec proves it.

    * Throughput: one code and `lanes` values a cycle, from one row to the next without a gap;
      a row of K codes takes K cycles.
    * Latency: from the last element to the sums, 4 cycles, one for every two bits of the mantissa
      (``(code_bits + 1) // 2``) and one for every two bits of the
      largest left shift. Only a row that ends before the sums of the one before were
      taken waits for them.
    * Rows of any length pass; past ``spec.row_length`` the sums may wrap around.

    Parameters
    ----------
    spec : AdaLogMatmulSpec
    lanes : int
        Columns of V.
    constants : dict, optional
        Baked-in constants. Without them the unit has a write port ``w``: the address is a code,
        with the data of `AdaLogTables`, or ``2**code_bits`` for ``zero_v``. It may be written while
        no row is inside.

    Attributes
    ----------
    i : In(stream), rows of K elements, one a beat
        An element is ``code``, unsigned `code_bits` + 1, and ``values``: `lanes` columns of the row of V
        that the code weighs, unsigned `value_bits`.
    o : Out(stream), rows of `lanes` elements, one beat a row
        The signed sums, as wide as ``spec.accumulator``, with the guard bits of the layer.
    w : In(stream), only without `constants`
    """

    equal_fields = ("code_bits", "value_bits")

    def __init__(self, spec: AdaLogMatmulSpec, *, lanes: int = 1, constants: Constants | None = None):
        check_one_head([spec])
        self.spec, self.lanes = spec, lanes
        self.loadable = constants is None
        checked = None if constants is None else spec.check_constants(constants)
        self._zero_v = 0 if checked is None else int(checked["zero_v"])
        # A signed number shifted right by one bit less than it has is its sign, and stays it from there on.
        self._limit = spec.product_bits - 1
        cut = cut_bits(spec, self._limit)
        self._tables = AdaLogTables(
            spec.code_bits,
            guard_bits=spec.guard_bits,
            cut_bits=cut,
            ports=1,
            entries=None if checked is None else table_entries(spec, checked, cut),
        )
        self._multiplier = DigitMultiplier(spec.value_bits + 2, spec.code_bits + 1, lanes=lanes)
        self._accumulate = ShiftAccumulate(
            value_bits=spec.product_bits,
            largest_amount=self._tables.largest_left_shift,
            dropped_bits=cut,
            accumulator_bits=spec.accumulator.bits,
            lanes=lanes,
        )
        code, value = spec.inputs
        element = data.StructLayout({"code": shape_of(code), "values": data.ArrayLayout(shape_of(value), lanes)})
        ports = {"i": In(row_signature(element, 1)), "o": Out(row_signature(shape_of(spec.accumulator), lanes))}
        if self.loadable:
            self._data_bits = max(self._tables.entry.size, spec.value_bits + 1)
            ports["w"] = In(write_signature(spec.code_bits + 1, self._data_bits))
        super().__init__(ports)

    @classmethod
    def covering(cls, layers: Sequence[tuple[AdaLogMatmulSpec, Constants]], *, lanes: int = 1) -> AdaLogMatmul:
        """The loadable unit with the longest row, most guard bits, farthest cut and widest accumulator.

        Raises
        ------
        HwsimError
            The layers differ in a field of `equal_fields`, or all together exceed the limits of the spec.
        """
        specs = [spec for spec, _ in layers]
        check_one_head(specs)
        check_equal(specs, cls.equal_fields)
        guard_bits = max(spec.guard_bits for spec in specs)
        spec = dataclasses.replace(
            specs[0],
            row_length=max(spec.row_length for spec in specs),
            guard_bits=guard_bits,
            largest_shift=guard_bits + max(cut_bits(spec, spec.product_bits - 1) for spec in specs),
            requantize=widest_accumulator([spec.requantize for spec in specs]),
        )
        return cls(spec, lanes=lanes)

    @property
    def parameters(self) -> dict[str, int]:
        """Hardware parameters beyond the spec."""
        return {"lanes": self.lanes}

    @property
    def _front_latency(self) -> int:
        return self._tables.latency + 1 + self._multiplier.latency

    @property
    def latency(self) -> int:
        return self._front_latency + self._accumulate.latency

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """Write addresses and what lies there."""
        return [("code", self._tables.word), ("1 << code_bits", "zero_v, signed")]

    def cycles_per_row(self, length: int) -> int:
        """`length`: a code a cycle."""
        return length

    def writes(self, spec: AdaLogMatmulSpec, constants: Constants) -> list[tuple[int, int]]:
        """Address and data of a layer's tables and ``zero_v``.

        Raises
        ------
        HwsimError
            The unit does not cover the layer.
        """
        check_equal([self.spec, spec], self.equal_fields)
        check_covered(spec, self.spec, self._limit)
        check_accumulator(spec.requantize, self.spec.requantize)
        zero_v = int(constants["zero_v"]) & ((2 << spec.value_bits) - 1)
        return [*self._tables.writes(spec, constants), (spec.zero_symbol, zero_v)]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.tables = tables = self._tables
        m.submodules.multiplier = multiplier = self._multiplier
        m.submodules.accumulate = accumulate = self._accumulate
        zero_v = Signal(signed(self.spec.value_bits + 1), init=self._zero_v)
        if self.loadable:
            to_zero_v = self.w.payload.address[-1]
            m.d.comb += [
                tables.w.payload.address.eq(self.w.payload.address[:-1]),
                tables.w.payload.data.eq(self.w.payload.data),
                tables.w.valid.eq(self.w.valid & ~to_zero_v),
            ]
            with m.If(self.w.valid & to_zero_v & (self.w.payload.address[:-1] == 0)):
                m.d.sync += zero_v.eq(self.w.payload.data)

        terms = accumulate.i
        pipeline = Pipeline(m, self.i, terms, self._front_latency)
        element = self.i.payload.data[0]
        # An element that is not there weighs as much as the zero symbol.
        m.d.comb += [
            tables.enable.eq(pipeline.advance),
            tables.codes[0].eq(element.code | (~self.i.payload.keep << self.spec.code_bits)),
            multiplier.enable.eq(pipeline.advance),
            multiplier.factor.eq(tables.entries[0].mantissa),
            terms.payload.amount.eq(pipeline.delay(tables.entries[0].left_shift, 1 + multiplier.latency, "left_shift")),
            terms.payload.last.eq(pipeline.delay(self.i.payload.last, self._front_latency, "last")),
        ]
        for lane, (term, value) in enumerate(zip(terms.payload["values"], element["values"], strict=True)):
            value = pipeline.delay(value, self._tables.latency, f"lane{lane}_value")
            centred = Signal(signed(self.spec.value_bits + 2), name=f"lane{lane}_centred", reset_less=True)
            with m.If(pipeline.advance):
                m.d.sync += centred.eq(value - zero_v)
            m.d.comb += [multiplier.values[lane].eq(centred), term.eq(multiplier.products[lane])]

        m.d.comb += [
            self.o.payload.eq(accumulate.o.payload),
            self.o.valid.eq(accumulate.o.valid),
            accumulate.o.ready.eq(self.o.ready),
        ]
        return m
