"""Rounding of quotients of reals, exact at ties."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def rounded_quotient(values: np.ndarray, scale: float | Fraction, limit: int, offset: int = 0) -> np.ndarray:
    """``round_half_even(values / scale + offset)`` of real numbers.

    Where a float64 is close to a tie, rational numbers decide.

    Parameters
    ----------
    values : ndarray of float64, any shape
    scale : float or Fraction
        Above 0.
    limit : int
        Quotients beyond it on either side may come out as anything beyond it: what is clipped either way.
    offset : int
        Added before the rounding, so that it decides ties when it is odd.

    Returns
    -------
    ndarray of int64, as `values`
    """
    flat = values.ravel()
    quotient = np.clip(flat / float(scale), -float(limit), float(limit))
    rounded = np.rint(quotient + offset).astype(np.int64)
    for i in np.flatnonzero(np.abs(quotient - np.floor(quotient) - 0.5) < 1e-6).tolist():
        rounded[i] = round(Fraction(flat[i].item()) / Fraction(scale) + offset)
    return rounded.reshape(values.shape)
