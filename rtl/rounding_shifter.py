"""Shift right by a run-time amount, add, round half to even, saturate: the end of a requantization."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from golden.spec import IntFormat
from rtl.arithmetic import round_half_even_shift, saturate, shift_right_sticky
from rtl.delay import delay

# Bits kept below the integer part: the first bit cut off, and whether any lower one was set.
FRACTION_BITS = 2


class RoundingShifter(wiring.Component):
    """``saturate(round_half_even(value / 2**amount + zero_point))``, an unsigned code.

    The largest distance comes first. When distances of at most r are left, only the low
    ``code_bits + 2 + r`` bits of the integer part can reach the code, a sign included: with more
    than ``code_bits + 2`` bits in the end, no zero point brings it back into the range. So
    every step drops the bits above and notes when they were not copies of the sign.
    What leaves at the bottom stays as two bits, see `rtl.arithmetic.shift_right_sticky`.
    The zero point is added before the rounding, so that a tie goes to the even code.

    Parameters
    ----------
    value_bits : int
        Width of the signed value.
    amount_bits : int
    code_bits : int

    Attributes
    ----------
    enable : In(1)
        The registers move.
    value : In(signed)
    amount : In
    zero_point : In(signed), `code_bits` + 1 wide
        Stays put while values are inside.
    code : Out, `code_bits` wide
        `latency` moves later.
    """

    def __init__(self, value_bits: int, amount_bits: int, code_bits: int) -> None:
        self.amount_bits = amount_bits
        self.code_bits = code_bits
        # Distances of a stage: the far ones, which gather many bits, alone, the others in pairs.
        far = [[level] for level in reversed(range(4, amount_bits))]
        near = list(reversed(range(min(4, amount_bits))))
        self._stages = far + [near[first : first + 2] for first in range(0, len(near), 2)]
        super().__init__(
            {
                "enable": In(1),
                "value": In(signed(value_bits)),
                "amount": In(amount_bits),
                "zero_point": In(signed(code_bits + 1)),
                "code": Out(code_bits),
            }
        )

    @property
    def latency(self) -> int:
        """Moves from the value to the code: the distances, the zero point, the rounding, the saturation."""
        return len(self._stages) + 3

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # Bits above the amount's reach that the value lacks are copies of its sign.
        window: Value = Cat(Const(0, FRACTION_BITS), self.value).as_signed()
        outside: Value = Const(0, 1)
        amount: Value = self.amount
        for number, levels in enumerate(self._stages, start=1):
            for level in levels:
                window = shift_right_sticky(window, 1 << level, when=amount[level])
                needed = FRACTION_BITS + self.code_bits + 2 + (1 << level) - 1
                if len(window) > needed:
                    upper = window[needed - 1 :]
                    outside = outside | (upper.any() & ~upper.all())
                    window = window[:needed].as_signed()
            window = delay(m, window, f"window_{number}", enable=self.enable)
            outside = delay(m, outside, f"outside_{number}", enable=self.enable)
            if levels[-1]:
                amount = delay(m, amount[: levels[-1]], f"amount_below_bit{levels[-1]}", enable=self.enable)
        shifting = len(self._stages)
        negative = delay(m, self.value[-1], "negative", shifting + 2, enable=self.enable)
        outside = delay(m, outside, "outside_of_window", 2, enable=self.enable)

        shifted = Signal(signed(len(window) + 1), name="with_zero_point", reset_less=True)
        result = round_half_even_shift(shifted, FRACTION_BITS)
        rounded = Signal(result.shape(), name="rounded", reset_less=True)
        code = saturate(rounded, IntFormat(self.code_bits))
        with m.If(self.enable):
            m.d.sync += [
                shifted.eq(window + (self.zero_point << FRACTION_BITS)),
                rounded.eq(result),
                self.code.eq(Mux(outside, (~negative).replicate(self.code_bits), code)),
            ]
        return m
