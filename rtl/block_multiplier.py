"""Multiply wide numbers in 18-bit multiplier blocks, one addition a stage."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from rtl.delay import delay

# A block multiplies signed 18-bit numbers (Lattice MULT18X18D; other families have the same or more).
BLOCK_BITS = 18
DIGIT_BITS = BLOCK_BITS - 1


class BlockMultiplier(wiring.Component):
    """``values * factor``, exact: signed values of `lanes` lanes, one unsigned factor for all of them.

    Both operands are cut into digits of 17 bits; a product of two digits takes one multiplier block and
    one stage, register to register without logic, so that the registers may move into
    the block. The products of one weight are added, then each weight takes the upper
    bits of the sum below it: one carry chain of about 37 bits a stage.

    Open tools do not use the registers in the blocks of an ECP5 and end near 140 MHz;
    `rtl.digit_multiplier.DigitMultiplier` does the same in carry chains.

    Parameters
    ----------
    value_bits : int
        Width of the signed value.
    factor_bits : int
        Width of the unsigned factor.
    lanes : int

    Attributes
    ----------
    enable : In(1)
        The registers move.
    factor : In
        `factor_lead` moves ahead of the values it multiplies, that is, with them.
    values : In, array of `lanes`
    products : Out, array of `lanes`, `value_bits` + `factor_bits` wide
        `latency` moves after the values.
    """

    factor_lead = 0

    def __init__(self, value_bits: int, factor_bits: int, *, lanes: int) -> None:
        self.lanes = lanes
        self.value_digits = _digits(value_bits)
        self.factor_digits = _digits(factor_bits + 1)
        super().__init__(
            {
                "enable": In(1),
                "factor": In(factor_bits),
                "values": In(data.ArrayLayout(signed(value_bits), lanes)),
                "products": Out(data.ArrayLayout(signed(value_bits + factor_bits), lanes)),
            }
        )

    @property
    def blocks(self) -> int:
        """Multiplier blocks."""
        return self.lanes * self.value_digits * self.factor_digits

    @property
    def _adds_within_weight(self) -> bool:
        return min(self.value_digits, self.factor_digits) > 1

    @property
    def latency(self) -> int:
        """Moves from the operands to the product."""
        return 1 + self._adds_within_weight + self.value_digits + self.factor_digits - 2

    def _delay(self, m: Module, value: Value, name: str, stages: int) -> Value:
        return delay(m, value, name, stages, enable=self.enable)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += [
            product.eq(self._product(m, f"lane{lane}", value))
            for lane, (value, product) in enumerate(zip(self.values, self.products, strict=True))
        ]
        return m

    def _product(self, m: Module, lane: str, operand: Value) -> Value:
        weights: list[list[Value]] = [[] for _ in range(self.value_digits + self.factor_digits - 1)]
        for i, value in enumerate(_cut(operand, self.value_digits)):
            for j, factor in enumerate(_cut(Cat(self.factor, 0).as_signed(), self.factor_digits)):
                block = Signal(signed(len(value) + len(factor)), name=f"{lane}_block_{i}_{j}", reset_less=True)
                with m.If(self.enable):
                    m.d.sync += block.eq(value * factor)
                weights[i + j].append(block)

        columns: list[Value] = []
        for weight, blocks in enumerate(weights):
            column = blocks[0]
            if self._adds_within_weight:
                # Not more than two: 62 bits in all give no two operands of three digits.
                total = sum(blocks[1:], start=column)
                column = Signal(total.shape(), name=f"{lane}_column_{weight}", reset_less=True)
                with m.If(self.enable):
                    m.d.sync += column.eq(total)
            columns.append(column)

        last = len(columns) - 1
        parts: list[Value] = []
        carried = columns[0]
        for weight in range(1, len(columns)):
            parts.append(self._delay(m, carried[:DIGIT_BITS], f"{lane}_part_{weight - 1}", last - weight + 1))
            column = self._delay(m, columns[weight], f"{lane}_column_{weight}_held", weight - 1)
            total = column + (carried >> DIGIT_BITS)
            carried = Signal(total.shape(), name=f"{lane}_carried_{weight}", reset_less=True)
            with m.If(self.enable):
                m.d.sync += carried.eq(total)
        return Cat(*parts, carried)


def _digits(bits: int) -> int:
    """Digits of a signed number: the top one may have 18 bits, the others 17."""
    return max(1, -(-(bits - 1) // DIGIT_BITS))


def _cut(x: Value, digits: int) -> list[Value]:
    """The digits of a signed number from the lowest: the top one signed, the others not below 0."""
    low = [Cat(x[DIGIT_BITS * i : DIGIT_BITS * (i + 1)], 0).as_signed() for i in range(digits - 1)]
    return [*low, x[DIGIT_BITS * (digits - 1) :].as_signed()]
