"""The shared arithmetic of the units as Amaranth expressions: rounding shift, saturation.

The hardware side of `golden.arithmetic`; every unit rounds and clips through here.
All are combinational: where a stage ends is up to the caller. Amaranth expressions
are trees, and these use their operand several times: pass a signal, not a deep expression.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Mux, Value, ValueLike

from golden.spec import IntFormat
from rtl.stream import shape_of


def round_half_even(kept: Value, half: ValueLike, sticky: ValueLike) -> Value:
    """`kept` plus what was cut off below it, rounded half to even.

    Parameters
    ----------
    kept : Value
        The integer part (floor), signed or unsigned.
    half : ValueLike
        The first bit cut off.
    sticky : ValueLike
        Whether any bit below `half` was set.

    Returns
    -------
    Value
        One bit wider than `kept`.
    """
    return kept + (half & (sticky | kept[0]))


def round_half_even_shift(x: Value, shift: int) -> Value:
    """``x / 2**shift`` rounded half to even, for a constant shift.

    Parameters
    ----------
    x : Value
        Signed or unsigned.
    shift : int
        0 or more.

    Returns
    -------
    Value
        ``len(x) - shift + 1`` bits (2 at least when a bit is cut off, `x` itself for shift 0).

    Notes
    -----
    The carry chain is as long as the result, not as `x`: the cut bits only meet in an OR.
    """
    if shift == 0:
        return x
    signed = x.shape().signed
    if len(x) <= shift:  # keep a bit above the cut, for the sign
        fill = x[-1] if signed else Const(0, 1)
        x = Cat(x, fill.replicate(shift + 1 - len(x)))
        x = x.as_signed() if signed else x
    sticky = x[: shift - 1].any() if shift > 1 else Const(0, 1)
    kept = x[shift:]
    return round_half_even(kept.as_signed() if signed else kept, x[shift - 1], sticky)


def shift_right_sticky(x: Value, shift: int, when: ValueLike = 1) -> Value:
    """`x` shifted right by a constant where `when` holds, every lost bit ORed into bit 0.

    One step of a rounding shifter for a run-time shift: append two zeros below the value,
    take a step a shift bit (``shift=1 << k, when=amount[k]``), then
    ``round_half_even_shift(result, 2)``. Same width and sign as `x`; a register may stand
    between any two steps.
    """
    lost = x[: shift + 1].any()
    fill = x[-1] if x.shape().signed else Const(0, 1)
    body = x[shift + 1 :]
    shifted = Cat(lost, body, fill.replicate(len(x) - 1 - len(body)))
    result = Mux(when, shifted, x[:])
    return result.as_signed() if x.shape().signed else result


def saturate(x: Value, to: IntFormat) -> Value:
    """`x` clipped to the range of a format; has exactly its width and sign.

    Only the bits above the format are looked at, no comparison takes a carry chain.
    """
    source, target = x.shape(), shape_of(to)
    result: Value
    if source.signed:
        sign = x[-1]
        if to.signed:
            if len(x) <= to.bits:
                return _extend(x, to)
            upper = x[to.bits - 1 :]
            outside = upper.any() & ~upper.all()
            limit = Cat((~sign).replicate(to.bits - 1), sign)
            result = Mux(outside, limit, x[: to.bits])
        else:
            above = ~sign & x[to.bits : -1].any() if len(x) - 1 > to.bits else Const(0, 1)
            low = _extend(x[:-1], to) if len(x) - 1 < to.bits else x[: to.bits]
            result = (low | above.replicate(to.bits)) & (~sign).replicate(to.bits)
    else:
        positive = to.bits - to.signed
        if len(x) <= positive:
            return _extend(x, to)
        above = x[positive:].any()
        result = Cat(x[:positive] | above.replicate(positive), Const(0, int(to.signed)))
    return result.as_signed() if target.signed else result


def _extend(x: Value, to: IntFormat) -> Value:
    """A value that fits, at the format's width."""
    fill = x[-1] if x.shape().signed and len(x) else Const(0, 1)
    result = Cat(x, fill.replicate(to.bits - len(x)))
    return result.as_signed() if to.signed else result
