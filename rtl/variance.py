"""Variance of a row from its sums, two bits a cycle, with the leading bits a reciprocal square root needs."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Shape, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.booth import add_with_carry, booth_row


class Variance(wiring.Component):
    """``D = squares - sum * sum``, as its leading bits and their place.

    D is made from the low end, two bits a cycle: Booth's recoding multiplies the sum with
    itself by one narrow addition a cycle, and the two bits that fall out below are subtracted
    from the squares with a borrow. A window follows the last bits made; where two bits are not
    both zero, the window is kept, and in the end it holds the leading bits of D, aligned to an
    even shift: no adder of D's width, no leading-zero count, no wide shifter.

    * Interval: ``digits + 3`` cycles from one row taken to the next one, when the result is taken at once.
    * Latency: ``digits + 2`` cycles from a row taken to its result.

    Parameters
    ----------
    sum_bits : int
        Width of the signed sum.
    digits : int
        Pairs of bits of D, which must be below ``4**digits``.
    zeros : int
        The low bits of the squares that are zero and not part of the input.
    radicand_bits : int
        Leading bits kept, even.

    Attributes
    ----------
    i : In(stream) of ``sum`` and ``squares`` (modulo ``4**digits``, without its low zeros)
    o : Out(stream) of
        ``leading`` : `radicand_bits` of D from its highest nonzero pair of bits down, zeros below the point;
        ``pair`` : number of that pair, 0 for the lowest;
        ``nonzero`` : whether D > 0 (else the other two mean nothing);
        ``sum`` : the sum again.
    """

    def __init__(self, *, sum_bits: int, digits: int, zeros: int, radicand_bits: int) -> None:
        self.sum_shape = signed(sum_bits)
        self.digits = digits
        self.zeros = zeros
        self.radicand_bits = radicand_bits
        super().__init__(
            {
                "i": In(stream.Signature(self.input_layout)),
                "o": Out(stream.Signature(leading_layout(self.sum_shape, digits, radicand_bits))),
            }
        )

    @property
    def input_layout(self) -> data.StructLayout:
        return data.StructLayout({"sum": self.sum_shape, "squares": unsigned(2 * self.digits - self.zeros)})

    @property
    def interval(self) -> int:
        """Cycles from one row taken to the next."""
        return self.digits + 3

    @property
    def latency(self) -> int:
        """Cycles from a row taken to its result."""
        return self.digits + 2

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # One register tells the machines before that they may go on: it holds all of them.
        idle = Signal(init=1)
        done = Signal()
        pair = Signal(range(self.digits + 1))  # number of the newest pair of bits in the window
        m.d.comb += [self.o.valid.eq(done), self.i.ready.eq(idle)]

        # Multiplicand and multiplier are the same sum; the multiplier keeps the bit below its digit.
        multiplicand = Signal(self.sum_shape, reset_less=True)
        multiplier = Signal(signed(self.sum_shape.width + 1), reset_less=True)
        minuend = Signal(2 * self.digits, reset_less=True)
        # What is left of the product above the bits already out: at most 2/3 of the multiplicand.
        product = Signal(self.sum_shape, reset_less=True)
        borrow = Signal(reset_less=True)

        row, carry = booth_row(multiplier[:3], multiplicand)
        total = Signal(signed(self.sum_shape.width + 2))
        difference = Signal(3)
        digit = difference[:2]
        m.d.comb += [
            total.eq(add_with_carry(product, row, carry)),
            difference.eq(minuend[:2] - total[:2] - borrow),
        ]

        window = Signal(self.radicand_bits, reset_less=True)
        leading = Signal(self.radicand_bits, reset_less=True)
        leading_pair = Signal.like(pair, reset_less=True)
        nonzero = Signal(reset_less=True)
        shifted_window = Cat(window, digit)[2:]
        with m.If(done & self.o.ready):
            m.d.sync += [idle.eq(1), done.eq(0)]
        with m.If(~idle & ~done):
            m.d.sync += [
                multiplier.eq(multiplier >> 2),
                product.eq(total >> 2),
                minuend.eq(minuend >> 2),
                borrow.eq(difference[2]),
                window.eq(shifted_window),
                pair.eq(pair + 1),
            ]
            # A cycle after the subtraction, whose carries are long enough without it.
            with m.If(window[-2:].any()):
                m.d.sync += [leading.eq(window), leading_pair.eq(pair), nonzero.eq(1)]
            with m.If(pair == self.digits - 1):
                m.d.sync += done.eq(1)
        with m.If(self.i.valid & idle):
            m.d.sync += [
                idle.eq(0),
                pair.eq(-1),
                multiplicand.eq(self.i.payload.sum),
                multiplier.eq(Cat(Const(0, 1), self.i.payload.sum).as_signed()),
                minuend.eq(Cat(Const(0, self.zeros), self.i.payload.squares)),
                product.eq(0),
                borrow.eq(0),
                window.eq(0),
                nonzero.eq(0),
            ]
        m.d.comb += [
            self.o.payload.leading.eq(leading),
            self.o.payload.pair.eq(leading_pair),
            self.o.payload.nonzero.eq(nonzero),
            self.o.payload.sum.eq(multiplicand),
        ]
        return m


def leading_layout(sum_shape: Shape, digits: int, radicand_bits: int) -> data.StructLayout:
    """What `Variance` tells of a row: leading bits of D, their place, and the sum."""
    return data.StructLayout(
        {
            "leading": unsigned(radicand_bits),
            "pair": unsigned(max(1, (digits - 1).bit_length())),
            "nonzero": unsigned(1),
            "sum": sum_shape,
        }
    )
