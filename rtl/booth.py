"""Booth recoding: a signed multiplication as one row of the multiplicand for every two bits of the multiplier."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Mux, Value


def booth_row(digit: Value, multiplicand: Value) -> tuple[Value, Value]:
    """A radix-4 Booth digit times the multiplicand.

    Parameters
    ----------
    digit : Value
        Bits ``2k-1``, ``2k`` and ``2k+1`` of the signed multiplier, the first one 0 for k = 0.
        Its value is ``bit[2k-1] + bit[2k] - 2*bit[2k+1]``, -2 to 2, and has the weight ``4**k``.
    multiplicand : Value
        Signed.

    Returns
    -------
    row : Value
        Signed, one bit wider than the multiplicand.
    carry : Value
        To be added to `row`; kept apart because it can enter the carry chain of the next sum.
    """
    below, low, high = digit[0], digit[1], digit[2]
    one = below ^ low
    two = Mux(high, ~(below | low), below & low)
    negative = high & ~(below & low)
    doubled = Cat(Const(0, 1), multiplicand)
    extended = Cat(multiplicand, multiplicand[-1])
    magnitude = (extended & one.replicate(len(extended))) | (doubled & two.replicate(len(doubled)))
    return (magnitude ^ negative.replicate(len(magnitude))).as_signed(), negative


def add_with_carry(a: Value, b: Value, carry: Value) -> Value:
    """``a + b + carry`` of signed values in one carry chain: `carry` enters by a bit below the sum."""
    total = Cat(Const(1, 1), a).as_signed() + Cat(carry, b).as_signed()
    return total[1:].as_signed()


def booth_product(multiplier: Value, below: Value, multiplicand: Value) -> tuple[Value, Value]:
    """``(multiplier + below) * multiplicand``, but for a last carry.

    Parameters
    ----------
    multiplier : Value
        Signed, a few bits; an adder for every two of them.
    below : Value
        The bit below the multiplier's lowest: 0, or, where the multiplier is the upper part of a
        number whose lower part counts as signed, that part's highest bit.
    multiplicand : Value
        Signed.

    Returns
    -------
    partial, carry : Value
        The product is ``partial + carry``, `partial` signed.
    """
    sign = multiplier[-1]
    bits = Cat(below, multiplier, sign)  # the second sign bit completes the top digit of an odd width
    starts = range(0, len(multiplier), 2)
    rows = [booth_row(bits[start : start + 3], multiplicand) for start in starts]
    partial, carry = rows.pop()
    while rows:
        row, row_carry = rows.pop()
        upper = add_with_carry(row[2:].as_signed(), partial, carry)
        partial, carry = Cat(row[:2], upper).as_signed(), row_carry
    return partial, carry
