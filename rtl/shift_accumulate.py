# amaranth: UnusedElaboratable=no
"""Shift, then accumulate over a row: the common end of the matrix products on logarithmic codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from amaranth.hdl import Module, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from golden.errors import HwsimError
from golden.requantize import RequantizeSpec
from rtl.delay import delay
from rtl.left_shifter import LeftShifter
from rtl.stream import row_signature


class ShiftAccumulate(wiring.Component):
    """``sum over a row of floor(value * 2**amount / 2**dropped_bits)``, `lanes` columns side by side.

    Parameters
    ----------
    value_bits : int
        Width of the signed values.
    largest_amount : int
        1 or more.
    dropped_bits : int
        Bits cut off below, each term by itself (rounded down).
    accumulator_bits : int
        Width of the signed sums. They wrap around (two's complement); the spec proves that
        they do not need to.
    lanes : int
    banks : int
        Sums of each lane; a beat adds to the one that it names.

    Attributes
    ----------
    i : stream of ``values`` (array of `lanes`), ``amount``, ``last`` and, with more than one of them, ``bank``
    o : stream of rows of ``banks * lanes`` sums, one beat a row, ``keep`` all ones, ``last`` high; those of the first
        bank come first

    Notes
    -----
    A beat a cycle, also from one row to the next: at ``last`` the sums move to the output
    register and the accumulators start at zero again. The path stands only when a row ends
    while the sums of the one before have not been taken, so a consumer has a whole row's
    time for them.
    """

    def __init__(
        self,
        *,
        value_bits: int,
        largest_amount: int,
        dropped_bits: int,
        accumulator_bits: int,
        lanes: int,
        banks: int = 1,
    ) -> None:
        self.dropped_bits = dropped_bits
        self.accumulator_bits = accumulator_bits
        self.lanes, self.banks = lanes, banks
        self.shifter = LeftShifter(signed(value_bits), lanes=lanes, largest=largest_amount)
        members = {
            "values": data.ArrayLayout(signed(value_bits), lanes),
            "amount": unsigned(largest_amount.bit_length()),
            "last": unsigned(1),
        }
        if banks > 1:
            members["bank"] = unsigned((banks - 1).bit_length())
        layout = data.StructLayout(members)
        sums = row_signature(signed(accumulator_bits), banks * lanes)
        super().__init__({"i": In(stream.Signature(layout)), "o": Out(sums)})

    @property
    def latency(self) -> int:
        """Cycles from the last beat taken to the sums, without stalls."""
        return self.shifter.latency + 1

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.shifter = shifter = self.shifter
        advance = Signal()

        valid = delay(m, self.i.valid, "valid", shifter.latency, enable=advance, reset_less=False)
        # One register says that a row ends, as it decides in every cycle whether the path moves.
        ends = delay(m, self.i.valid & self.i.payload.last, "ends", shifter.latency, enable=advance, reset_less=False)
        free = Signal()
        m.d.comb += [
            # Only a row's end needs the output register.
            free.eq(~self.o.valid | self.o.ready),
            advance.eq(~ends | free),
            self.i.ready.eq(advance),
            shifter.enable.eq(advance),
            shifter.values.eq(self.i.payload.values),
            shifter.amount.eq(self.i.payload.amount),
            self.o.payload.keep.eq(-1),
            self.o.payload.last.eq(1),
        ]

        with m.If(free):
            m.d.sync += self.o.valid.eq(ends)
        # High in the cycle after a reset, when no term can have come through the shifter.
        fresh = Signal(init=1)
        m.d.sync += fresh.eq(0)
        terms = [shifted >> self.dropped_bits for shifted in shifter.shifted]
        if self.banks > 1:
            bank = delay(m, self.i.payload.bank, "bank", shifter.latency, enable=advance)
            terms = [
                term & (bank == number).replicate(len(term)).as_signed()
                for number in range(self.banks)
                for term in terms
            ]
        for place, term in enumerate(terms):
            accumulator = Signal(signed(self.accumulator_bits), name=f"accumulator_{place}", reset_less=True)
            total = Signal(signed(self.accumulator_bits), name=f"total_{place}")
            result = Signal(signed(self.accumulator_bits), name=f"result_{place}", reset_less=True)
            m.d.comb += [total.eq(accumulator + term), self.o.payload.data[place].eq(result)]
            # One clear after a reset and at the end of a row, so that no multiplexer stands behind the adder.
            with m.If(fresh | (ends & free)):
                m.d.sync += accumulator.eq(0)
            with m.Elif(valid & advance):
                m.d.sync += accumulator.eq(total)
            with m.If(free):
                m.d.sync += result.eq(total)
        return m


def widest_accumulator(requantizers: Sequence[RequantizeSpec]) -> RequantizeSpec:
    """The first of the specs that end a matrix product, with the widest accumulator of them all.

    Raises
    ------
    HwsimError
        With the widest accumulator the first spec does not hold.
    """
    return dataclasses.replace(requantizers[0], input=max((spec.input for spec in requantizers), key=lambda f: f.bits))


def check_accumulator(layer: RequantizeSpec, unit: RequantizeSpec) -> None:
    """Refuse a layer whose accumulator is wider than the one built.

    Raises
    ------
    HwsimError
        Says both widths.
    """
    if layer.input.bits > unit.input.bits:
        raise HwsimError(
            f"the layer's accumulator has {layer.input.bits} bits, the unit was built with {unit.input.bits}; "
            "build it to cover this layer"
        )
