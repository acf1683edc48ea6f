"""Checks of the arguments of the released procedures; each names the argument and its range."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from golden.errors import HwsimError

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def positive_scale(name: str, value: float) -> float:
    """`value` as a Python float above 0 and at most the largest float32."""
    try:
        scale = float(value)
    except (TypeError, ValueError):
        raise HwsimError(f"{name} must be one positive number, not {value!r}") from None
    if not 0 < scale <= LARGEST_FLOAT32:
        raise HwsimError(f"{name} must be above 0 and at most {LARGEST_FLOAT32:.4g}, not {scale}")
    return scale


def whole_number(name: str, value: int, low: int, high: int) -> int:
    """`value` as a Python integer in ``low..high``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise HwsimError(f"{name} must be an integer between {low} and {high}, not {value!r}")
    return int(value)


def integer_array(name: str, values: ArrayLike, low: int, high: int) -> np.ndarray:
    """`values` as int64; floats are taken only when every one is a whole number."""
    array = np.asarray(values)
    whole = array.dtype.kind == "f" and np.array_equal(array, np.rint(array))
    if array.dtype.kind not in "iu" and not whole:
        raise HwsimError(f"{name} must hold integers, not {array.dtype} values")
    if array.size and (array.min() < low or array.max() > high):
        raise HwsimError(f"{name} must be between {low} and {high}, but reaches {array.min()}..{array.max()}")
    return array.astype(np.int64)


def real_array(name: str, values: ArrayLike) -> np.ndarray:
    """`values`, finite and within float32's range, as float64 (which holds any float32 exactly)."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise HwsimError(f"{name} must hold real numbers of at most 64 bits, not {array.dtype} values")
    reals = array.astype(np.float64)
    bad = ~(np.abs(reals) <= LARGEST_FLOAT32)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise HwsimError(f"{name} must be finite and within float32's range, but holds {reals[where]} at index {where}")
    return reals
