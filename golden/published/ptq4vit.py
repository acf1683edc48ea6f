"""PTQ4ViT's quantizers: symmetric uniform, and both twin uniform ones, as in the paper and as released."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from golden.published.adalog import GELU_SHIFT
from golden.published.arguments import positive_scale, real_array, whole_number
from golden.published.rounding import rounded_quotient

LARGEST_BITS = 16
# The released search splits the softmax at 2**0 to 2**-19.
LARGEST_SPLIT = 40


def symmetric_quantize(x: ArrayLike, bits: int, scale: float) -> np.ndarray:
    """Codes ``clip(round_half_even(x / scale), -2**(bits - 1), 2**(bits - 1) - 1)``.

    Parameters
    ----------
    x : array of float, any shape
    bits : int
        Width of the code, 2 to 16.
    scale : float
        Above 0.

    Returns
    -------
    codes : ndarray of int64, as `x`

    Raises
    ------
    HwsimError
        An argument is out of range, or `x` holds NaN or Inf.

    Notes
    -----
    The search begins at ``max|x| / (2**(bits-1) - 0.5)``.

    Source: the released code of PTQ4ViT (Yuan et al., ECCV 2022).
    """
    half = 1 << (whole_number("bits", bits, 2, LARGEST_BITS) - 1)
    rounded = rounded_quotient(real_array("x", x), positive_scale("scale", scale), 2 * half)
    return np.clip(rounded, -half, half - 1)


def twin_softmax(x: ArrayLike, bits: int, split: int, *, as_released: bool = False) -> np.ndarray:
    """Probabilities behind the twin uniform quantizer, float64.

    Parameters
    ----------
    x : array of float, any shape
        0 to 1.
    bits : int
        Width of the code, 2 to 16; one bit says which range.
    split : int
        The ranges meet at ``2**-split``, 0 to 40; their steps differ by as much.
    as_released : bool
        The form of the released code: steps of ``1 / (2**(bits-1) - 1)`` and ``2**-split`` of it, and the value of
        *both* ranges added up, which makes nearly every value too large by ``2**-split``. The paper's form takes the
        one range that the value lies in, with steps ``2**-(bits-1)`` and ``2**-(bits-1+split)``.

    Returns
    -------
    values : ndarray of float64, as `x`

    Raises
    ------
    HwsimError
        An argument is out of range.

    Notes
    -----
    Source: PTQ4ViT (Yuan et al., ECCV 2022), section 3.1, and its released code.
    """
    half = 1 << (whole_number("bits", bits, 2, LARGEST_BITS) - 1)
    split = whole_number("split", split, 0, LARGEST_SPLIT)
    values, border = real_array("x", x), 2.0**-split
    if not as_released:
        fine, coarse = (
            np.clip(rounded_quotient(values, step, 2 * half), 0, half - 1) * step for step in (border / half, 1 / half)
        )
        return np.where(values < border, fine, coarse)
    last = half - 1
    high = np.clip(rounded_quotient(np.clip(values, border, 1.0), Fraction(1, last), 2 * half), 0, last) / last
    step = Fraction(1, last << split)
    low = np.clip(rounded_quotient(np.clip(values, 0.0, border), step, 2 * half), 0, last) * float(step)
    return high + low


def twin_gelu(x: ArrayLike, bits: int, positive_step: float) -> np.ndarray:
    """GELU outputs behind the twin uniform quantizer, float64; the paper's form and the released one agree.

    Parameters
    ----------
    x : array of float, any shape
    bits : int
        Width of the code, 2 to 16; one bit says which range.
    positive_step : float
        Step of the positive range. The paper has a power of two times the negative one, the released code any.

    Returns
    -------
    values : ndarray of float64, as `x`

    Raises
    ------
    HwsimError
        An argument is out of range, or `x` holds NaN or Inf.

    Notes
    -----
    The step of the negative range just covers GELU's smallest value: 0.16997124254703522 / 2**(bits-1).

    Source: the released code of PTQ4ViT (Yuan et al., ECCV 2022).
    """
    half = 1 << (whole_number("bits", bits, 2, LARGEST_BITS) - 1)
    values, step = real_array("x", x), positive_scale("positive_step", positive_step)
    negative = GELU_SHIFT / half
    upper = np.clip(rounded_quotient(values, step, 2 * half), 0, half - 1) * step
    return upper + np.clip(rounded_quotient(values, negative, 2 * half), -half, 0) * negative
