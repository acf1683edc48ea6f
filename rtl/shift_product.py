# amaranth: UnusedElaboratable=no
"""What the matrix products on codes of powers of two have in common: subtract a zero point, shift, accumulate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from amaranth.hdl import Module, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from golden.spec import Constants
from rtl.shift_accumulate import ShiftAccumulate
from rtl.stream import check_equal, row_signature, shape_of, write_signature

ZERO_V_ADDRESS = 0


class ShiftProduct(wiring.Component):
    """``sum_k (v_k - zero_v) * 2**amount(code_k)`` for `lanes` columns of V, or several such sums.

    Kinds say how far a code shifts, which codes weigh nothing, and, of several sums, which one a code adds to.

    Parameters
    ----------
    spec : Spec
        Of two inputs, codes and values, with ``zero_v`` among its constants.
    accumulate : ShiftAccumulate
        For values of `value_bits` + 2 bits.
    lanes : int
    constants : dict, optional
        Baked-in constants.
    """

    equal_fields: ClassVar[tuple[str, ...]]

    def __init__(
        self, spec: Any, accumulate: ShiftAccumulate, *, lanes: int = 1, constants: Constants | None = None
    ) -> None:
        self.spec, self.lanes = spec, lanes
        self.loadable = constants is None
        self._zero_v = 0 if constants is None else int(spec.check_constants(constants)["zero_v"])
        self._accumulate = accumulate
        code, value = spec.inputs
        element = data.StructLayout({"code": shape_of(code), "values": data.ArrayLayout(shape_of(value), lanes)})
        sums = row_signature(signed(accumulate.accumulator_bits), accumulate.banks * lanes)
        ports = {"i": In(row_signature(element, 1)), "o": Out(sums)}
        if self.loadable:
            ports["w"] = In(write_signature(1, spec.value_bits + 1))
        super().__init__(ports)

    def amount(self, code: Value) -> Value:
        """How far a code shifts to the left; of the zero symbol it does not matter."""
        raise NotImplementedError

    def weighs_nothing(self, code: Value) -> Value:
        """Whether a code is the zero symbol."""
        raise NotImplementedError

    def bank(self, code: Value) -> Value | None:
        """The sum that a code adds to; None where there is only one."""
        return None

    @property
    def parameters(self) -> dict[str, int]:
        """Hardware parameters beyond the spec."""
        return {"lanes": self.lanes}

    @property
    def latency(self) -> int:
        return 1 + self._accumulate.latency

    @property
    def addresses(self) -> Sequence[tuple[str, str]]:
        """Write addresses and what lies there."""
        return [(str(ZERO_V_ADDRESS), "zero_v, signed")]

    def cycles_per_row(self, length: int) -> int:
        """`length`: a code a cycle."""
        return length

    def check_fits(self, spec: Any) -> None:
        """Refuse a layer whose sums are wider than those built.

        Raises
        ------
        HwsimError
            Says both widths.
        """
        raise NotImplementedError

    def writes(self, spec: Any, constants: Constants) -> list[tuple[int, int]]:
        """Address and data of a layer's ``zero_v``.

        Raises
        ------
        HwsimError
            The unit does not cover the layer.
        """
        check_equal([self.spec, spec], self.equal_fields)
        self.check_fits(spec)
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
        m.d.comb += self.i.ready.eq(terms.ready | ~terms.valid)
        with m.If(self.i.ready):
            m.d.sync += [
                terms.valid.eq(self.i.valid),
                terms.payload.amount.eq(self.amount(element.code)),
                terms.payload.last.eq(self.i.payload.last),
            ]
            bank = self.bank(element.code)
            if bank is not None:
                m.d.sync += terms.payload.bank.eq(bank)
            for term, value in zip(terms.payload["values"], element["values"], strict=True):
                m.d.sync += term.eq(value - zero_v)
                with m.If(self.weighs_nothing(element.code) | ~self.i.payload.keep):
                    m.d.sync += term.eq(0)

        m.d.comb += [
            self.o.payload.eq(accumulate.o.payload),
            self.o.valid.eq(accumulate.o.valid),
            accumulate.o.ready.eq(self.o.ready),
        ]
        return m
