"""First machine of LayerNorm: codes to X, to C*X for the row buffer, and to the sums of a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.delay import delay
from rtl.layernorm_widths import LayerNormWidths
from rtl.stream import row_signature, shape_of


class RowSums(wiring.Component):
    """``X = (q - zero_in) << alpha``, ``sum X`` and ``sum odd*X*X`` of each row, ``C = odd << zeros``.

    With `odd`, 1 or 3 in all the usual networks, the multiple of X that the output needs also
    makes C times the squares, so no product with C is left for later.

    Every row in gives one row of `channels` elements: a short one is filled up with ``X = 0``
    while the input waits, the surplus of a long one is dropped. Everything stands while the
    sums of a row wait to be taken.

    Parameters
    ----------
    widths : LayerNormWidths

    Attributes
    ----------
    i : In(stream), rows of codes
    o : Out(stream) of ``sum`` and ``squares``, a beat a row
    zero_in : In
    beat : Out
        Number in its row of the beat that is expected, for the memory of alpha.
    enable : Out
        The registers move; so must those of that memory.
    alpha : In, only with `alpha_bits` above 0
        Of the lanes of `beat`, one enabled cycle later.
    full : In
        No further beat may be taken; `in_flight` of them may still come out.
    write : Out
        `multiples` hold a beat for the row buffer.
    multiples : Out
        ``odd * X`` of the lanes.
    """

    in_flight = 5
    """Beats between `full` and the row buffer: stages 1 to 4 and the one that is just being taken."""

    def __init__(self, widths: LayerNormWidths) -> None:
        self.widths = widths
        spec, lanes = widths.spec, widths.lanes
        sums = data.StructLayout({"sum": signed(widths.sum_bits), "squares": unsigned(widths.squares_bits)})
        ports = {
            "i": In(row_signature(shape_of(spec.input), lanes)),
            "o": Out(stream.Signature(sums)),
            "zero_in": In(signed(spec.input_bits + 1)),
            "beat": Out(range(widths.beats)),
            "enable": Out(1),
            "full": In(1),
            "write": Out(1),
            "multiples": Out(data.ArrayLayout(signed(widths.multiple_bits), lanes)),
        }
        if spec.alpha_bits:
            ports["alpha"] = In(data.ArrayLayout(unsigned(spec.alpha_bits), lanes))
        super().__init__(ports)

    @property
    def latency(self) -> int:
        """Cycles from the last beat of a row taken to its sums."""
        return 8 + (self.widths.lanes - 1).bit_length()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        widths, spec = self.widths, self.widths.spec
        enable = self.enable
        m.d.comb += enable.eq(~self.o.valid | self.o.ready)

        def stage(value: Value, name: str, *, reset_less: bool = True) -> Any:
            return delay(m, value, name, enable=enable, reset_less=reset_less)

        # Framing: a row is `beats` beats, whatever `last` says.
        final = Signal()
        taken = Signal()
        filling = Signal()
        dropping = Signal()
        m.d.comb += [
            final.eq(self.beat == widths.beats - 1),
            self.i.ready.eq(enable & ~self.full & ~filling),
            taken.eq(~self.full & (filling | (self.i.valid & ~dropping))),
        ]
        with m.If(enable & ~self.full):
            with m.If(taken):
                m.d.sync += self.beat.eq(Mux(final, 0, self.beat + 1))
            with m.If(filling):
                m.d.sync += filling.eq(~final)
            with m.Elif(self.i.valid):
                m.d.sync += [
                    filling.eq(~dropping & self.i.payload.last & ~final),
                    dropping.eq((dropping | final) & ~self.i.payload.last),
                ]

        valid, row_start, row_end = taken, self.beat == 0, final
        for number in range(1, self.latency):
            valid = stage(valid, f"valid_{number}", reset_less=False)
            row_start, row_end = stage(row_start, f"row_start_{number}"), stage(row_end, f"row_end_{number}")
            if number == 4:
                m.d.comb += self.write.eq(enable & valid)

        used_at_end = spec.channels % widths.lanes or widths.lanes
        values, squares = [], []
        for lane in range(widths.lanes):
            there = self.i.payload.keep[lane] & ~filling
            if lane >= used_at_end:
                there &= ~final
            difference = stage(Mux(there, self.i.payload.data[lane] - self.zero_in, 0), f"difference_{lane}")
            # The memory of alpha is slow: a stage for it alone.
            difference = stage(difference, f"difference_{lane}_2")
            shifted: Value = difference
            if spec.alpha_bits:
                shifted = difference << stage(self.alpha[lane], f"alpha_{lane}")
            value = stage(shifted[: widths.value_bits].as_signed(), f"value_{lane}")
            multiple = constant_multiple(value, widths.odd)[: widths.multiple_bits].as_signed()
            multiple = stage(multiple, f"multiple_{lane}")
            m.d.comb += self.multiples[lane].eq(multiple)
            value = stage(value, f"value_{lane}_4")
            values.append(value)
            # Registers of its own beside the multiplier keep it off the critical path.
            product = stage(value, f"squared_{lane}") * stage(multiple, f"squared_multiple_{lane}")
            square = stage(product[: widths.square_bits], f"square_{lane}_unplaced")
            squares.append(stage(square, f"square_{lane}"))

        # A stage for every level of the adder trees over the lanes, then the accumulators.
        lane_squares = self._tree(stage, squares, "squares")
        lane_sum: Value = self._tree(stage, values, "values")
        for number in range(5, 8):
            lane_sum = stage(lane_sum, f"lane_sum_{number}")
        row_sum = Signal(signed(widths.sum_bits), reset_less=True)
        row_squares = Signal(widths.squares_bits, reset_less=True)
        with m.If(enable):
            m.d.sync += self.o.valid.eq(valid & row_end)
            with m.If(valid):
                m.d.sync += [
                    row_sum.eq(Mux(row_start, 0, row_sum) + lane_sum),
                    row_squares.eq(Mux(row_start, 0, row_squares) + lane_squares),
                ]
        m.d.comb += [self.o.payload.sum.eq(row_sum), self.o.payload.squares.eq(row_squares)]
        return m

    @staticmethod
    def _tree(stage: Callable[[Value, str], Signal], terms: list[Signal], name: str) -> Signal:
        """Sum of the terms, a register after every adder."""
        level = 0
        while len(terms) > 1:
            level += 1
            pairs = [terms[start : start + 2] for start in range(0, len(terms), 2)]
            terms = [
                stage(pair[0] + pair[1] if len(pair) == 2 else pair[0], f"{name}_level{level}_{number}")
                for number, pair in enumerate(pairs)
            ]
        return terms[0]


def constant_multiple(x: Value, factor: int) -> Value:
    """``factor * x`` for a constant factor above 0: an adder or subtractor for every nonzero signed digit but one."""
    digits, shift = [], 0
    while factor:
        if factor & 1:
            digit = -1 if factor % 4 == 3 and factor > 3 else 1  # a run of ones is one subtraction
            digits.append((digit, shift))
            factor -= digit
        factor >>= 1
        shift += 1
    total = x << digits.pop()[1]
    for digit, shift in reversed(digits):
        total = total + (x << shift) if digit > 0 else total - (x << shift)
    return total
