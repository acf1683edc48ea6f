"""The shared integer primitives: rounding shift, saturation, dyadic multiply, integer roots.

All take and return int64 arrays (or Python integers) and are exact; callers
keep every intermediate below 2^63, which the specs check.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from golden.spec import IntFormat

IntArray = Any  # a Python int or an integer ndarray


def round_half_even_shift(x: IntArray, shift: IntArray) -> IntArray:
    """``x / 2**shift`` rounded to the nearest integer, ties to the even one.

    Parameters
    ----------
    x : int or ndarray of int64
        Signed values.
    shift : int or ndarray of int64
        Shift of 0 to 63, broadcast against `x`; ``abs(x) + 2**(shift-1)`` must be below ``2**63``.

    Notes
    -----
    Adding ``2**(shift-1) - 1`` plus the bit that becomes the result's last one
    carries exactly when the discarded part is above one half, or is one half
    and the result would be odd. For shift 0 nothing is added.
    """
    if isinstance(x, int) and isinstance(shift, int):
        return x if shift == 0 else (x + (1 << (shift - 1)) - 1 + ((x >> shift) & 1)) >> shift
    x = np.asarray(x, dtype=np.int64)
    shift = np.asarray(shift, dtype=np.int64)
    half = np.int64(1) << np.maximum(shift - 1, 0)
    odd = (x >> shift) & 1
    return np.where(shift == 0, x, (x + half - 1 + odd) >> shift)


def round_half_even_divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """``numerator / denominator`` rounded half to even; denominator above 0, both int64."""
    quotient = numerator // denominator
    twice = 2 * (numerator - quotient * denominator)
    return quotient + ((twice > denominator) | ((twice == denominator) & (quotient & 1 == 1)))


def saturate(x: np.ndarray, to: IntFormat) -> np.ndarray:
    """Clip to the range of a format and return its smallest dtype."""
    return np.clip(x, to.minimum, to.maximum).astype(to.dtype)


def wrap(x: np.ndarray, bits: int) -> np.ndarray:
    """Two's complement value of the low `bits` bits of int64 values."""
    spare = np.int64(64 - bits)
    return (x << spare) >> spare


def dyadic(x: np.ndarray, multiplier: IntArray, shift: IntArray, zero_point: IntArray = 0) -> np.ndarray:
    """``round_half_even(x * multiplier / 2**shift + zero_point)``, the one requantization formula.

    The zero point is added before rounding (as FQ-ViT does, algorithms 0.3), so
    that a tie goes to the even *code*; in hardware it is one constant addend.
    """
    shift = np.asarray(shift, dtype=np.int64)
    zero_point = np.asarray(zero_point, dtype=np.int64)
    return round_half_even_shift(np.asarray(x, np.int64) * multiplier + (zero_point << shift), shift)


def bit_length(x: np.ndarray) -> np.ndarray:
    """Position of the highest set bit plus one, 0 for 0; int64 values of 0 or more."""
    x = np.asarray(x, dtype=np.int64)
    length = np.zeros(x.shape, dtype=np.int64)
    rest = x.copy()
    for step in (32, 16, 8, 4, 2, 1):
        big = rest >= (np.int64(1) << step)
        length += np.where(big, step, 0)
        rest = np.where(big, rest >> step, rest)
    return length + rest


def reciprocal_sqrt(radicand: int, mantissa_bits: int, radicand_bits: int) -> tuple[int, int]:
    """``1 / sqrt(radicand)`` as ``mantissa * 2**-exponent``.

    Parameters
    ----------
    radicand : int
        Above 0.
    mantissa_bits : int
        Width p of the mantissa, which lies in ``2**(p-1) .. 2**p - 1``.
    radicand_bits : int
        Even; this many leading bits of the radicand are used (aligned to an even
        shift, the rest is cut off), so that hardware needs a recurrence of this
        width only.

    Returns
    -------
    mantissa, exponent : int

    Notes
    -----
    With ``h = ceil(bit_length / 2)`` the radicand is ``d * 4**(h - radicand_bits/2)``,
    d of `radicand_bits` bits, and the mantissa is the largest p-bit m with
    ``m*m*d <= 2**(radicand_bits + 2*(p-1))``: one bit a step, no divider.
    The relative error is below ``2**(1-p) + 2**(1-radicand_bits)``.
    """
    half_length = (radicand.bit_length() + 1) // 2
    excess = 2 * half_length - radicand_bits
    leading = radicand >> excess if excess >= 0 else radicand << -excess
    limit = 1 << (radicand_bits + 2 * (mantissa_bits - 1))
    mantissa = min(math.isqrt(limit // leading), (1 << mantissa_bits) - 1)
    return mantissa, mantissa_bits - 1 + half_length
