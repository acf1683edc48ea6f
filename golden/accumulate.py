"""Accumulators: their proven range, and what happens when one is too narrow."""

from __future__ import annotations

import numpy as np

from golden.arithmetic import wrap
from golden.errors import HwsimError
from golden.spec import IntFormat

# "prove": refused at load unless it cannot overflow. "wrap": two's complement.
# "saturate": clipped after every product, in index order.
OVERFLOW = ("prove", "wrap", "saturate")
# Remedies for an accumulator that is too narrow.
WRAP_OR_SATURATE = " or set overflow to wrap or saturate"
FEWER_GUARD_BITS = " or fewer guard_bits; this unit neither wraps nor saturates"


def signed_bits(low: int, high: int) -> int:
    """Width of the narrowest signed format that holds ``low..high``."""
    return max(high.bit_length(), (-low - 1).bit_length() if low < 0 else 0) + 1


def prove_fits(low: int, high: int, accumulator: IntFormat, where: str, remedy: str = "") -> None:
    """Refuse an accumulator that does not hold ``low..high``.

    Parameters
    ----------
    low, high : int
    accumulator : IntFormat
    where : str
        The unit.
    remedy : str
        What the unit offers besides a wider accumulator, `WRAP_OR_SATURATE` or `FEWER_GUARD_BITS`.

    Raises
    ------
    HwsimError
        Names the width that would do.
    """
    if low < accumulator.minimum or high > accumulator.maximum:
        raise HwsimError(
            f"{where}: the accumulator could overflow: sums reach {low}..{high}, accumulator_bits is "
            f"{accumulator.bits}; use at least {signed_bits(low, high)}{remedy}"
        )


def dot_bounds(weight: np.ndarray, bias: np.ndarray, low: int, high: int) -> tuple[int, int]:
    """Range of every partial sum of ``weight @ x + bias`` for inputs in ``low..high``.

    Parameters
    ----------
    weight : ndarray [outputs, inputs]
    bias : ndarray [outputs]
    """
    weight = weight.astype(np.int64)
    products = np.stack([weight * low, weight * high])
    highest = np.maximum(products.max(axis=0), 0).sum(axis=1) + np.maximum(bias, 0)
    lowest = np.minimum(products.min(axis=0), 0).sum(axis=1) + np.minimum(bias, 0)
    return int(lowest.min()), int(highest.max())


def accumulate(a: np.ndarray, b: np.ndarray, start: np.ndarray | int, format: IntFormat, overflow: str) -> np.ndarray:
    """``a @ b + start`` in an accumulator of the given format.

    Parameters
    ----------
    a : ndarray of int64 [..., M, K]
    b : ndarray of int64 [..., K, N]
    start : initial value, broadcast to [..., M, N]
    overflow : {"prove", "wrap", "saturate"}

    Returns
    -------
    ndarray of int64 [..., M, N]
    """
    if overflow == "saturate":
        shape = np.broadcast_shapes(a.shape[:-1] + (1,), b.shape[:-2] + (1, b.shape[-1]))
        total = np.broadcast_to(np.clip(start, format.minimum, format.maximum), shape).astype(np.int64)
        for k in range(a.shape[-1]):
            total = np.clip(total + a[..., :, k, None] * b[..., k, None, :], format.minimum, format.maximum)
        return total
    total = a @ b + start
    return wrap(total, format.bits) if overflow == "wrap" else total
