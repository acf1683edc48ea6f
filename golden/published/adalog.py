"""AdaLog's quantizers as released: a logarithm of searched base 2**(q/37), decoded by two tables; also behind GELU."""

from __future__ import annotations

from bisect import bisect_right
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from golden.errors import HwsimError
from golden.published.arguments import integer_array, positive_scale, real_array, whole_number

# Denominator r of the searched logarithm log2(base) = q/r; prime, so that q and r are coprime.
R = 37
# Largest q of the published search.
LARGEST_Q = 137
# The shifted form adds the smallest value of GELU (but for 4e-8; 0.17 in the paper).
GELU_SHIFT = 0.16997124254703522
# The released code clamps x / scale to this range before the logarithm.
SMALLEST_RATIO = 1e-15


def _check(bits: int, q: int) -> tuple[int, int]:
    return whole_number("bits", bits, 1, 8), whole_number("q", q, 1, LARGEST_Q)


def adalog_tables(bits: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    """The two decode tables of AdaLog codes.

    Parameters
    ----------
    bits : int
        Width of the code, 1 to 8; the tables have ``L = 2**bits`` entries.
    q : int
        Numerator of the base's logarithm ``q/37``, 1 to 137 (published search: 10 to 137).

    Returns
    -------
    T1 : ndarray of int64, [L]
        Right shift, ``floor(q*code / 37)``.
    T2 : ndarray of int64, [L]
        Mantissa ``round_half_even(2**-u * (2L-2))``, L-1 to 2L-2, with
        ``u = (q*code mod 37) / 37``.

    Raises
    ------
    HwsimError
        `bits` or `q` is out of range.

    Notes
    -----
    ``2**-u`` is irrational but for u = 0, so T2 is the largest t with
    ``t - 1/2 <= 2**-u * (2L-2)``, compared as 37th powers of integers.

    Source: AdaLog, equations 7 to 9.
    """
    bits, q = _check(bits, q)
    codes = np.arange(1 << bits, dtype=np.int64)
    shift, rest = np.divmod(q * codes, R)
    full_scale = (2 << bits) - 2
    reach = (2 * full_scale) ** R
    by_rest = {
        u: bisect_right(range(1, full_scale + 1), reach, key=lambda t, u=u: (2 * t - 1) ** R << u)  # type: ignore[misc]
        for u in set(rest.tolist())
    }
    return shift, np.array([by_rest[u] for u in rest.tolist()], dtype=np.int64)


def _exact_exponent(ratio: Fraction, q: int, candidate: int) -> int:
    """``round_half_even(-log2(ratio) * 37 / q)``, known to be `candidate` or the integer below it."""
    # -log2(y) * 37/q > m - 1/2  <=>  y**74 < 2**-((2m-1) * q)
    left = ratio.numerator ** (2 * R) << (2 * candidate - 1) * q
    right = ratio.denominator ** (2 * R)
    if left == right:
        return candidate - candidate % 2
    return candidate if left < right else candidate - 1


def adalog_quantize(x: ArrayLike, bits: int, q: int, scale: float = 1.0) -> np.ndarray:
    """AdaLog codes of non-negative values.

    Parameters
    ----------
    x : array of float, any shape
        Values to quantize; for the shifted (GELU) form, with the shift already added.
    bits, q : int
        As for `adalog_tables`.
    scale : float
        Value of code 0, above 0.

    Returns
    -------
    codes : ndarray of int64, as `x`
        ``u = round_half_even(-log2(x/scale) * 37/q)`` where ``u < 2**bits``, else -1, the
        zero symbol.

    Raises
    ------
    HwsimError
        An argument is out of range, or `x` holds NaN or Inf.

    Notes
    -----
    As in the released code, ``x/scale`` is clamped to 1e-15 .. 1 first. Zero and
    negative values therefore have the u of 1e-15, ``round(49.83 * 37/q)``; where that
    is a code (at 8 bits for every q above 7) they get this code and not the zero symbol.

    The rounding is that of the real number: a float64 estimate decides where it is
    farther than 1e-9 from a half-integer, a thousand times its error; the rest is
    decided by comparing ``(x/scale)**74`` with a power of two as integers. True ties
    exist, at ``x/scale = 2**-j`` and q even, and go to the even code.

    Source: AdaLog, equations 5 and 13, and its released AdaLogQuantizer.
    """
    bits, q = _check(bits, q)
    scale = positive_scale("scale", scale)
    values = real_array("x", x)
    flat = values.ravel()
    estimate = -np.log2(np.clip(flat / scale, SMALLEST_RATIO, 1.0)) * R / q
    codes = np.rint(estimate).astype(np.int64)
    above = np.floor(estimate).astype(np.int64) + 1
    doubtful = np.flatnonzero(np.abs(above - 0.5 - estimate) < 1e-9)
    distinct, first, position = np.unique(flat[doubtful], return_index=True, return_inverse=True)
    exact = [
        _exact_exponent(
            min(max(Fraction(value) / Fraction(scale), Fraction(SMALLEST_RATIO)), Fraction(1)), q, candidate
        )
        for value, candidate in zip(distinct.tolist(), above[doubtful[first]].tolist(), strict=True)
    ]
    codes[doubtful] = np.array(exact, dtype=np.int64)[position]
    return np.where(codes >> bits > 0, -1, codes).reshape(values.shape)


def adalog_dequantize(codes: ArrayLike, bits: int, q: int, scale: float = 1.0) -> np.ndarray:
    """Values of AdaLog codes, ``2**-T1 * (T2 / (2L-2)) * scale``.

    Parameters
    ----------
    codes : array of int, any shape
        0 to ``2**bits - 1``, or -1, the zero symbol.
    bits, q : int
        As for `adalog_tables`.
    scale : float
        Value of code 0, above 0.

    Returns
    -------
    values : ndarray of float64, as `codes`
        The zero symbol gives 0.0.

    Raises
    ------
    HwsimError
        An argument is out of range.

    Notes
    -----
    The quotient is rounded to float64, scaled by a power of two (exact) and then
    multiplied by `scale`: the order of the released code with tables in float64.

    Source: AdaLog, equations 7 to 10, and its released AdaLogQuantizer.
    """
    bits, q = _check(bits, q)
    scale = positive_scale("scale", scale)
    symbols = integer_array("codes", codes, -1, (1 << bits) - 1)
    shift, mantissa = adalog_tables(bits, q)
    values = np.ldexp(mantissa / ((2 << bits) - 2), -shift) * scale
    return np.where(symbols < 0, 0.0, values[symbols])


def shifted_adalog_quantize(x: ArrayLike, bits: int, q: int, scale: float) -> np.ndarray:
    """AdaLog codes of GELU outputs: those of `adalog_quantize` for ``x + 0.16997124254703522``.

    Parameters
    ----------
    x : array of float, any shape
        -0.16997124254703522 or more.
    bits, q, scale
        As for `adalog_quantize`; code 0 stands for `scale` less the shift.

    Raises
    ------
    HwsimError
        An argument is out of range, or `x` holds NaN or Inf.

    Notes
    -----
    The sum is rounded to float64.

    Source: AdaLog, equation 13, and its released ShiftAdaLogQuantizer.
    """
    return adalog_quantize(real_array("x", x) + GELU_SHIFT, bits, q, scale)


def shifted_adalog_dequantize(codes: ArrayLike, bits: int, q: int, scale: float) -> np.ndarray:
    """Values of shifted AdaLog codes: those of `adalog_dequantize` less the shift, which is what the zero symbol gives.

    Parameters
    ----------
    codes, bits, q, scale
        As for `adalog_dequantize`.

    Raises
    ------
    HwsimError
        An argument is out of range.

    Notes
    -----
    Source: AdaLog, equation 14.
    """
    return adalog_dequantize(codes, bits, q, scale) - GELU_SHIFT


def shifted_bias(bias: ArrayLike, weight: ArrayLike) -> np.ndarray:
    """Bias of the layer behind shifted codes, which reads them without the shift: ``bias - shift * weight @ 1``.

    Parameters
    ----------
    bias : array of float [outputs]
    weight : array of float [outputs, inputs]
        As quantized.

    Returns
    -------
    ndarray of float64 [outputs]

    Raises
    ------
    HwsimError
        An argument holds NaN or Inf, or their shapes do not fit.

    Notes
    -----
    Source: AdaLog, equation 15.
    """
    biases, weights = real_array("bias", bias), real_array("weight", weight)
    if weights.ndim != 2 or biases.shape != weights.shape[:1]:
        raise HwsimError(
            f"bias and weight must have shapes [outputs] and [outputs, inputs], not {biases.shape} and {weights.shape}"
        )
    return biases - GELU_SHIFT * weights.sum(axis=1)
