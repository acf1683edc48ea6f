"""Reciprocal square root: a bit-serial division whose quotient feeds a bit-serial square root."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.variance import leading_layout


class ReciprocalSqrt(wiring.Component):
    """The mantissa of `golden.arithmetic.reciprocal_sqrt`, exact, by subtractions only.

    The largest m with ``m*m*d <= 2**(radicand_bits + 2*(p - 1))`` is the integer square root of
    ``2**(radicand_bits + 2*(p - 1)) // d``. A restoring division makes that quotient from the high
    end, and as soon as two bits of it are there, a restoring square root makes one bit of m. Both
    remainders are as narrow as their operands; for the smallest d the quotient is all ones, which
    is the saturated mantissa of the definition.

    With the number `pair` of the highest nonzero pair of bits, ``e = p + pair``; the mantissa is shifted
    left by ``2**fine_bits - 1 - pair % 2**fine_bits``, which leaves ``2**(p - 1 + 2**fine_bits * (coarse + 1))``
    as the divisor, with ``coarse = pair // 2**fine_bits``.

    * Interval: ``steps + 2`` cycles from one row taken to the next one, when the result is taken at once.
    * Latency: ``steps + 1`` cycles.

    Parameters
    ----------
    sum_bits : int
        Width of the signed sum that travels along.
    digits : int
        Pairs of bits of D.
    mantissa_bits, radicand_bits : int
    fine_bits : int
        Low bits of the exponent that are folded into the mantissa.
    quotient_bits : int
        Bits of the quotient a cycle: 1, the smallest and fastest, or 2, for short rows.

    Attributes
    ----------
    i : In(stream) of `rtl.variance.leading_layout`
    o : Out(stream) of ``mantissa`` (0 for D = 0), ``coarse`` and ``sum``
    """

    def __init__(
        self,
        *,
        sum_bits: int,
        digits: int,
        mantissa_bits: int,
        radicand_bits: int,
        fine_bits: int,
        quotient_bits: int,
    ) -> None:
        self.mantissa_bits = mantissa_bits
        self.radicand_bits = radicand_bits
        self.fine_bits = fine_bits
        self.quotient_bits = quotient_bits
        input_layout = leading_layout(signed(sum_bits), digits, radicand_bits)
        output_layout = data.StructLayout(
            {
                "mantissa": unsigned(mantissa_bits + self.longest_shift),
                "coarse": unsigned(max(1, ((digits - 1) >> fine_bits).bit_length())),
                "sum": signed(sum_bits),
            }
        )
        super().__init__({"i": In(stream.Signature(input_layout)), "o": Out(stream.Signature(output_layout))})

    @property
    def longest_shift(self) -> int:
        """Largest left shift of the mantissa."""
        return (1 << self.fine_bits) - 1

    @property
    def steps(self) -> int:
        """Cycles a row is worked on."""
        return root_steps(self.mantissa_bits, self.fine_bits, self.quotient_bits)

    @property
    def latency(self) -> int:
        """Cycles from a row taken to its result."""
        return self.steps + 1

    def elaborate(self, platform: object) -> Module:
        m = Module()
        idle = Signal(init=1)
        done = Signal()
        remaining = Signal(range(self.steps))
        row = Signal.like(self.i.payload, reset_less=True)

        # Division: d <= remainder * 2 in turn; the remainder starts at a quarter of the range, the least d.
        partial = Signal(self.radicand_bits, reset_less=True)
        rest = partial
        new_bits: list[Value] = []
        for step in range(self.quotient_bits):
            trial = Signal(signed(self.radicand_bits + 2), name=f"division_trial_{step}")
            next_rest = Signal(self.radicand_bits, name=f"division_rest_{step}")
            doubled = Cat(Const(0, 1), rest)
            m.d.comb += [trial.eq(doubled - row.leading), next_rest.eq(doubled)]
            with m.If(trial >= 0):
                m.d.comb += next_rest.eq(trial)
            new_bits.insert(0, trial >= 0)
            rest = next_rest
        quotient_pair = Signal(2, reset_less=True)

        # Square root: M -> 2M + 1 where 4M + 1 fits into what is left of the quotient so far.
        mantissa = Signal(self.mantissa_bits + self.longest_shift, reset_less=True)
        root_rest = Signal(self.mantissa_bits + 1, reset_less=True)
        dividend = Cat(quotient_pair, root_rest)
        root_trial = Signal(signed(self.mantissa_bits + 4))
        m.d.comb += root_trial.eq(dividend - Cat(Const(1, 2), mantissa[: self.mantissa_bits]))
        fits = root_trial >= 0
        fine = ~row.pair[: self.fine_bits]
        take_bit = Signal()
        shift = Signal()
        m.d.comb += take_bit.eq(remaining >= self.longest_shift if self.fine_bits else 1)
        if self.quotient_bits == 1:  # a pair is there in every other cycle, counted back from the last bit
            with m.If(remaining[0] != self.longest_shift % 2):
                m.d.comb += take_bit.eq(0)
        if self.fine_bits:
            m.d.comb += shift.eq(remaining < fine)

        with m.If(done & self.o.ready):
            m.d.sync += [idle.eq(1), done.eq(0)]
        with m.If(~idle & ~done):
            m.d.sync += [partial.eq(rest), quotient_pair.eq(Cat(*new_bits, quotient_pair)), remaining.eq(remaining - 1)]
            with m.If(take_bit):
                # The root of the first, empty pair is 0 and changes nothing.
                m.d.sync += [mantissa.eq(Cat(fits & row.nonzero, mantissa)), root_rest.eq(dividend)]
                with m.If(fits):
                    m.d.sync += root_rest.eq(root_trial)
            with m.If(shift):
                m.d.sync += mantissa.eq(mantissa << 1)
            with m.If(remaining == 0):
                m.d.sync += done.eq(1)
        with m.If(self.i.valid & idle):
            m.d.sync += [
                idle.eq(0),
                remaining.eq(self.steps - 1),
                row.eq(self.i.payload),
                partial.eq(1 << (self.radicand_bits - 2)),
                quotient_pair.eq(0),
                mantissa.eq(0),
                root_rest.eq(0),
            ]
        m.d.comb += [
            self.i.ready.eq(idle),
            self.o.valid.eq(done),
            self.o.payload.mantissa.eq(mantissa),
            self.o.payload.coarse.eq(row.pair >> self.fine_bits),
            self.o.payload.sum.eq(row.sum),
        ]
        return m


def root_steps(mantissa_bits: int, fine_bits: int, quotient_bits: int) -> int:
    """Cycles of the division, the one by which the square root lags, and those of the final shift."""
    return 2 * mantissa_bits // quotient_bits + 1 + (1 << fine_bits) - 1
