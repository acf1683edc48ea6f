"""Multiply by a narrow factor in carry chains, without a multiplier block."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from rtl.booth import add_with_carry
from rtl.delay import delay


class DigitMultiplier(wiring.Component):
    """``values * factor``, exact: signed values of `lanes` lanes, one unsigned factor for all of them.

    The factor is split into digits of radix 4 that are -2, -1, 0 or 1, and a top digit of 0, 1
    or 2. With ``2 * (1 + 4 + 16 + ...)`` added to the factor, two of its bits e are the digit
    ``e - 2``, whatever the other bits are. A multiple of the value by such a digit is one LUT a bit, so a
    digit costs one LUT and one adder bit a bit of the value, half of what one row a factor bit would.
    A negative multiple is the complement and a carry.

    `rtl.block_multiplier.BlockMultiplier` does the same in multiplier blocks.

    Parameters
    ----------
    value_bits : int
        Width of the signed values.
    factor_bits : int
        Width of the unsigned factor.
    lanes : int

    Attributes
    ----------
    enable : In(1)
        The registers move.
    factor : In
        `factor_lead` moves ahead of the values it multiplies.
    values : In, array of `lanes`
    products : Out, array of `lanes`, `value_bits` + `factor_bits` wide
        `latency` moves after the values.
    """

    factor_lead = 1

    def __init__(self, value_bits: int, factor_bits: int, *, lanes: int) -> None:
        self.value_bits = value_bits
        self.factor_bits = factor_bits
        self.lanes = lanes
        self.low_digits = factor_bits // 2
        super().__init__(
            {
                "enable": In(1),
                "factor": In(factor_bits),
                "values": In(data.ArrayLayout(signed(value_bits), lanes)),
                "products": Out(data.ArrayLayout(signed(value_bits + factor_bits), lanes)),
            }
        )

    @property
    def latency(self) -> int:
        """Moves from the values to their products: an adder a digit below the top one."""
        return self.low_digits

    def elaborate(self, platform: object) -> Module:
        m = Module()
        offset = sum(2 << 2 * position for position in range(self.low_digits))
        digits: Value = Signal(self.factor_bits + 1, name="digits", reset_less=True)
        with m.If(self.enable):
            m.d.sync += digits.eq(self.factor + offset)

        values: list[Value] = list(self.values)
        top = digits[2 * self.low_digits :]
        sums: list[Value] = []
        for value in values:
            once = Mux(top[0], value, 0)
            sums.append(Mux(top[1], value << 1, once) if self.factor_bits % 2 else once)
        for position in reversed(range(self.low_digits)):
            digit = digits[2 * position : 2 * position + 2]
            width = self.value_bits + self.factor_bits - 2 * position
            for lane, value in enumerate(values):
                multiple = Signal(signed(self.value_bits + 1), name=f"lane{lane}_multiple_{position}")
                # The digit is -2, -1, 0, 1; a negative one gives the complement, its carry comes below.
                with m.Switch(digit):
                    with m.Case(0):
                        m.d.comb += multiple.eq(~(value << 1))
                    with m.Case(1):
                        m.d.comb += multiple.eq(~value)
                    with m.Case(3):
                        m.d.comb += multiple.eq(value)
                total = Signal(signed(width), name=f"lane{lane}_sum_{position}", reset_less=True)
                above = Cat(Const(0, 2), sums[lane])
                with m.If(self.enable):
                    m.d.sync += total.eq(add_with_carry(above, multiple, ~digit[1]))
                sums[lane] = total
            if position:
                digits = delay(m, digits[: 2 * position], f"digits_below_{position}", enable=self.enable)
                values = [
                    delay(m, value, f"lane{lane}_value_{position}", enable=self.enable)
                    for lane, value in enumerate(values)
                ]
        m.d.comb += [product.eq(total) for product, total in zip(self.products, sums, strict=True)]
        return m
