# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False
"""The integer primitives of `golden.arithmetic` for Triton kernels.

A kernel gets its constants from `hwsim.execute.cuda.requantization`; the meaning of all of them is there.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def round_half_even_shift(x, shift):
    """``x / 2**shift``, ties to even; int64 both, shift 0 to 63."""
    half = (shift * 0 + 1) << tl.maximum(shift - 1, 0)
    rounded = (x + (half - 1) + ((x >> shift) & 1)) >> shift
    return tl.where(shift == 0, x, rounded)


@triton.jit
def requantize(x, multiplier, addend, shift, highest, SHIFT: tl.constexpr):
    """Codes, int32, of sums: ``clip(round_half_even((x * multiplier + addend) / 2**shift))``.

    SHIFT above 0: it is the shift of all, x and multiplier are int32, the quotient is proven to have 32 bits, and
    the addend holds half of ``2**SHIFT`` more. The sum shifted is then the quotient rounded half up, and the bits
    that leave are all 0 exactly at a tie.
    """
    if SHIFT > 0:
        scaled = x.to(tl.int64) * multiplier.to(tl.int64) + addend
        code = (scaled >> SHIFT).to(tl.int32)
        left = scaled.to(tl.int32)
        if SHIFT < 32:
            left = left & ((1 << SHIFT) - 1)
        code -= tl.where(left == 0, code & 1, 0)
        return tl.minimum(tl.maximum(code, 0), highest)
    exact = round_half_even_shift(x.to(tl.int64) * multiplier + addend, shift)
    return tl.minimum(tl.maximum(exact, 0), highest).to(tl.int32)


@triton.jit
def bit_length(x):
    """Bits of int64 values of 0 or more; through the exponent of doubles that hold 32 bits, hence exactly."""
    upper = x >> 32
    part = tl.where(upper > 0, upper, x & 0xFFFFFFFF)
    exponent = (part.to(tl.float64).to(tl.int64, bitcast=True) >> 52) - 1022
    return tl.where(part > 0, exponent, 0) + tl.where(upper > 0, 32, 0)


@triton.jit
def floor_sqrt(x):
    """Largest integer whose square is at most x, int64 of 0 to 2^62; the double is a guess that integers correct."""
    root = tl.sqrt(x.to(tl.float64)).to(tl.int64)
    root -= tl.where(root * root > x, 1, 0)
    return root + tl.where((root + 1) * (root + 1) <= x, 1, 0)


@triton.jit
def divide_half_even(numerator, denominator):
    """``numerator / denominator``, ties to even, for quotients below 2^30; int64, both below 2^61, the second above 0.

    The double quotient is off by less than one; the remainder corrects it.
    """
    quotient = (numerator.to(tl.float64) / denominator.to(tl.float64)).to(tl.int64)
    quotient -= tl.where(quotient * denominator > numerator, 1, 0)
    rest = numerator - quotient * denominator
    more = tl.where(rest >= denominator, 1, 0)
    quotient += more
    twice = 2 * (rest - more * denominator)
    up = (twice > denominator) | ((twice == denominator) & ((quotient & 1) == 1))
    return quotient + tl.where(up, 1, 0)


@triton.jit
def kept_code(code, table, offset, TABLE: tl.constexpr):
    """What is kept of a code: its entry in a table of the unit behind, or the code less its offset."""
    if TABLE:
        return tl.load(table + code)
    else:  # noqa: RET505 - Triton compiles what is behind an if, whatever the if returns
        return code - offset
