"""Left shift by a run-time amount, in pipeline stages."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

# Multiplexers a stage: two 4-input LUTs deep, which leaves most of a 150 MHz cycle to the wires.
LEVELS_A_STAGE = 2


class LeftShifter(wiring.Component):
    """``values * 2**amount``, exact, one amount for all lanes.

    Parameters
    ----------
    shape : Shape
        Of a value.
    lanes : int
    largest : int
        Largest amount, 1 or more; the result is this many bits wider. What larger amounts
        give is not defined.

    Attributes
    ----------
    enable : In(1)
        The registers move.
    values : In, array of `lanes` of `shape`
    amount : In, as wide as `largest` needs
    shifted : Out, array of `lanes`, `largest` bits wider than `shape`

    Notes
    -----
    The small distances come first, while the values are narrow: two bits of the amount a
    stage, `latency` stages.
    """

    def __init__(self, shape: Shape, *, lanes: int, largest: int) -> None:
        self.shape = shape
        self.lanes = lanes
        self.largest = largest
        super().__init__(
            {
                "enable": In(1),
                "values": In(data.ArrayLayout(shape, lanes)),
                "amount": In(largest.bit_length()),
                "shifted": Out(data.ArrayLayout(Shape(shape.width + largest, shape.signed), lanes)),
            }
        )

    @property
    def latency(self) -> int:
        """Stages: enabled cycles from the values to the shifted ones."""
        return -(-self.largest.bit_length() // LEVELS_A_STAGE)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        values, amount = list(self.values), self.amount
        for stage in range(self.latency):
            levels = range(LEVELS_A_STAGE * stage, min(LEVELS_A_STAGE * (stage + 1), self.largest.bit_length()))
            reach = min((2 << levels[-1]) - 1, self.largest)  # largest distance up to and with this stage
            registers = []
            for lane, value in enumerate(values):
                for level in levels:
                    value = _shifted_when(amount[level - levels[0]], value, 1 << level)
                register = Signal(
                    Shape(self.shape.width + reach, self.shape.signed),
                    name=f"lane{lane}_shifted_up_to_{reach}",
                    reset_less=True,
                )
                with m.If(self.enable):
                    m.d.sync += register.eq(value)
                registers.append(register)
            values = registers
            if stage + 1 < self.latency:
                rest = Signal(len(amount) - len(levels), name=f"amount_from_bit{levels[-1] + 1}", reset_less=True)
                with m.If(self.enable):
                    m.d.sync += rest.eq(amount[len(levels) :])
                amount = rest
        m.d.comb += [shifted.eq(value) for shifted, value in zip(self.shifted, values, strict=True)]
        return m


def _shifted_when(moves: Value, value: Value, distance: int) -> Value:
    """``value << distance`` when `moves`, else `value`, as wide as the former.

    The zeros are masked, not chosen: a choice of constants becomes a synchronous reset, whose
    wire would have to reach the registers of all lanes behind one more LUT.
    """
    width, signed = len(value), value.shape().signed
    fill = value[-1] if signed else Const(0, 1)
    stays = Cat(value, fill.replicate(distance))
    kept = max(width, distance)  # from here up only a moved value has bits of its own
    below = stays[:distance] & (~moves).replicate(distance)
    between = Mux(moves, value[: kept - distance], stays[distance:kept])
    moved = value[kept - distance :]
    above = Mux(moves, moved, fill.replicate(len(moved))) if signed else moved & moves.replicate(len(moved))
    result = Cat(below, between, above) if kept > distance else Cat(below, above)
    return result.as_signed() if signed else result
