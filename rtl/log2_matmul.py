# amaranth: UnusedElaboratable=no
"""Attention times V on Log2 codes: the shift-accumulate unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from amaranth.hdl import Const, Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from golden.log2_matmul import Log2MatmulSpec
from golden.spec import Constants
from rtl.shift_accumulate import ShiftAccumulate, check_accumulator, widest_accumulator
from rtl.stream import check_equal, check_one_head, row_signature, shape_of, write_signature

ZERO_V_ADDRESS = 0


class Log2Matmul(wiring.Component):
    """``sum_k (v_k - zero_v) << (last - code_k)`` for `lanes` columns of V; `Log2MatmulSpec.accumulate`.

    The path: subtract ``zero_v`` and blank the zero symbol; shift, two bits of the distance
    a stage; add. A value needs one bit more than ``zero_v``, the shifted one ``last`` more, the
    sum is as wide as the spec proves it. Nothing is truncated, no multiplier.

    * Throughput: one code and `lanes` values a cycle, from one row to the next without a gap;
      a row of K codes takes K cycles.
    * Latency: from the last element to the sums, 2 cycles and one for every two code bits.
      Only a row that ends before the sums of the one before were taken waits for them.
    * Rows of any length pass; past ``spec.row_length`` the sums may wrap around.

    Parameters
    ----------
    spec : Log2MatmulSpec
    lanes : int
        Columns of V.
    constants : dict, optional
        Baked-in constants. Without them the unit has a write port ``w``: address 0 is
        ``zero_v``. It may be written while no row is inside.

    Attributes
    ----------
    i : In(stream), rows of K elements, one a beat
        An element is ``code``, of the format ``spec.inputs[0]``, and ``values``: `lanes` columns of
        the row of V that the code weighs, unsigned `value_bits`.
    o : Out(stream), rows of `lanes` elements, one beat a row
        The signed sums, as wide as ``spec.accumulator``.
    w : In(stream), only without `constants`
    """

    equal_fields = ("code_bits", "value_bits", "beyond")

    def __init__(self, spec: Log2MatmulSpec, *, lanes: int = 1, constants: Constants | None = None):
        check_one_head([spec])
        self.spec, self.lanes = spec, lanes
        self.loadable = constants is None
        self._zero_v = 0 if constants is None else int(spec.check_constants(constants)["zero_v"])
        self._accumulate = ShiftAccumulate(
            value_bits=spec.value_bits + 2,
            largest_amount=spec.last_code,
            dropped_bits=0,
            accumulator_bits=spec.accumulator.bits,
            lanes=lanes,
        )
        code, value = spec.inputs
        element = data.StructLayout({"code": shape_of(code), "values": data.ArrayLayout(shape_of(value), lanes)})
        ports = {"i": In(row_signature(element, 1)), "o": Out(row_signature(shape_of(spec.accumulator), lanes))}
        if self.loadable:
            ports["w"] = In(write_signature(1, spec.value_bits + 1))
        super().__init__(ports)

    @classmethod
    def covering(cls, layers: Sequence[tuple[Log2MatmulSpec, Constants]], *, lanes: int = 1) -> Log2Matmul:
        """The loadable unit with the longest row and the widest accumulator of the layers.

        Raises
        ------
        HwsimError
            The layers differ in a field of `equal_fields`.
        """
        specs = [spec for spec, _ in layers]
        check_one_head(specs)
        check_equal(specs, cls.equal_fields)
        widest = widest_accumulator([spec.requantize for spec in specs])
        longest = max(spec.row_length for spec in specs)
        return cls(dataclasses.replace(specs[0], row_length=longest, requantize=widest), lanes=lanes)

    @property
    def parameters(self) -> dict[str, int]:
        """Hardware parameters beyond the spec."""
        return {"lanes": self.lanes}

    @property
    def latency(self) -> int:
        return 1 + self._accumulate.latency

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """Write addresses and what lies there."""
        return [(str(ZERO_V_ADDRESS), "zero_v, signed")]

    def cycles_per_row(self, length: int) -> int:
        """`length`: a code a cycle."""
        return length

    def writes(self, spec: Log2MatmulSpec, constants: Constants) -> list[tuple[int, int]]:
        """Address and data of a layer's ``zero_v``.

        Raises
        ------
        HwsimError
            The unit does not cover the layer.
        """
        check_equal([self.spec, spec], self.equal_fields)
        check_accumulator(spec.requantize, self.spec.requantize)
        return [(ZERO_V_ADDRESS, int(constants["zero_v"]) & ((2 << spec.value_bits) - 1))]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.accumulate = accumulate = self._accumulate
        zero_v = Signal(signed(self.spec.value_bits + 1), init=self._zero_v)
        if self.loadable:
            with m.If(self.w.valid & (self.w.payload.address == ZERO_V_ADDRESS)):
                m.d.sync += zero_v.eq(self.w.payload.data)

        terms = accumulate.i
        element = self.i.payload.data[0]
        code = element.code[: self.spec.code_bits]
        is_zero_symbol = element.code[-1] if self.spec.beyond == "zero" else Const(0, 1)
        m.d.comb += self.i.ready.eq(terms.ready | ~terms.valid)
        with m.If(self.i.ready):
            m.d.sync += [
                terms.valid.eq(self.i.valid),
                terms.payload.amount.eq(~code),  # last - code, as last is all ones
                terms.payload.last.eq(self.i.payload.last),
            ]
            for term, value in zip(terms.payload["values"], element["values"], strict=True):
                m.d.sync += term.eq(value - zero_v)
                with m.If(is_zero_symbol | ~self.i.payload.keep):
                    m.d.sync += term.eq(0)

        m.d.comb += [
            self.o.payload.eq(accumulate.o.payload),
            self.o.valid.eq(accumulate.o.valid),
            accumulate.o.ready.eq(self.o.ready),
        ]
        return m
