"""FQ-ViT's Log-Int-Softmax as released: i-exp, rounded ratio, binary logarithm with threshold 1.5."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from golden.arithmetic import round_half_even_divide
from golden.errors import HwsimError
from golden.log_softmax import exponential_constants, exponential_table, ratio_threshold
from golden.published.arguments import integer_array, positive_scale, whole_number

LARGEST_SCORE = 2**15
# Below it the constant c = floor(2.79 / scale^2) leaves 62 bits.
SMALLEST_SCALE = 2.0**-30


def log_int_softmax(scores: ArrayLike, scale: float, *, bits: int = 4, n: int = 30) -> np.ndarray:
    """Log2 codes of the softmax of integer scores.

    Parameters
    ----------
    scores : array of int, [..., N]
        ``q - zp`` of the quantized scores, -32768 to 32768 (9 bits signed in the
        published network); the last axis is the softmax row. Any constant added
        to a row cancels.
    scale : float
        Score scale, at least 2**-30 and below about 1.67, a float32 value in the
        released code.
    bits : int
        Codes are ``0 .. 2**bits - 1``; 1 to 8.
    n : int
        Fraction bits of i-exp, 0 to 62; also the number of octaves below the
        maximum at which scores are clamped.

    Returns
    -------
    codes : ndarray of int64, as `scores`
        ``-log2`` of the probability; -1 is the zero symbol, for probabilities past
        the last code.

    Raises
    ------
    HwsimError
        An argument is out of range, a row is empty, or the scale is so large that
        i-exp's constant c is 0 (the released code then divides 0 by 0).

    Notes
    -----
    The three i-exp constants are *defined* by the float64 quotients of the
    released code (``floor(b/s)``, ``floor(c/s**2)``, ``floor(-0.6931/s)``): whatever
    their last bit does belongs to the procedure. ``s**2`` of a float32 scale is
    exact in float64. All that follows is integer. The ratio S/E is rounded half to
    even from the integers; the released division rounds to 53 bits first, which
    differs only where S/E comes within 2**-53 of a half-integer without being one.
    Codes count the thresholds 2, 3, 6, 12, ... that the rounded ratio reaches,
    which is the floor of its logarithm plus its second most significant bit.

    Source: FQ-ViT, section 4.2 and its released QIntSoftmax; i-exp of I-BERT,
    algorithm 2.
    """
    scale = positive_scale("scale", scale)
    if scale < SMALLEST_SCALE:
        raise HwsimError(f"scale must be at least {SMALLEST_SCALE:.3g} for scores, not {scale}")
    bits = whole_number("bits", bits, 1, 8)
    n = whole_number("n", n, 0, 62)
    k = integer_array("scores", scores, -LARGEST_SCORE, LARGEST_SCORE)
    if k.ndim == 0 or k.shape[-1] == 0:
        raise HwsimError(f"scores must have rows of at least one score, not shape {k.shape}")

    constants = exponential_constants(scale)
    below_maximum = k.max(axis=-1, keepdims=True) - k
    polynomial, shift = exponential_table(constants, n, int(below_maximum.max(initial=0)) + 1)
    # Twice a row sum is the largest number formed; Python integers where 63 bits may not hold it.
    narrow = 2 * k.shape[-1] * (int(polynomial.max()) << n) < 1 << 63
    table = polynomial.astype(np.int64 if narrow else object) << shift

    # No exponential is 0: with c > 0 the polynomial is at least (0.6931**2 - 2.7073*0.6931 + 2.7921) / scale**2 - 1 > 0
    # below a scale of 0.6931, and c itself from there on.
    exponential = table[below_maximum]
    total = exponential.sum(axis=-1, keepdims=True)
    ratio = round_half_even_divide(total, exponential)
    largest = int(ratio.max(initial=1))
    codes = np.zeros(k.shape, dtype=np.int64)
    for code in range(1, (1 << bits) + 1):
        if ratio_threshold(code) > largest:
            break
        codes += ratio >= ratio_threshold(code)
    return np.where(codes >> bits > 0, -1, codes)
