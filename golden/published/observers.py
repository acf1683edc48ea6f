"""FQ-ViT's observers as released: uint8 asymmetric ranges, and the power-of-two factors of LayerNorm inputs.

These procedures are float by nature: scales are float64, as are the quantization
errors that the searches add up. Each elementary operation stands in the order
of the released code, so that its float64 result is the same; sums of errors,
whose result would depend on the order of addition, are compared exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from golden.errors import HwsimError
from golden.published.arguments import real_array

CODE_MAX = 255
SMALLEST_SCALE = float(np.finfo(np.float32).eps)
# Weight of a new batch in the moving averages of the ema and percentile observers.
SIGMA = 0.01
PERCENTILE = 0.99999
OMSE_STEPS = 90

Parameters = tuple[float, int]  # scale and zero point


def range_parameters(low: float, high: float) -> Parameters:
    """Scale and zero point of a range; the range is not widened to contain 0."""
    scale = max((high - low) / CODE_MAX, SMALLEST_SCALE)
    return scale, min(max(-round(low / scale), 0), CODE_MAX)


def squared_errors(x: np.ndarray, parameters: Parameters) -> np.ndarray:
    """Squared error of every element of `x` after quantizing and dequantizing; zero point added before rounding."""
    scale, zero_point = parameters
    codes = np.clip(np.rint(x / scale + zero_point), 0, CODE_MAX)
    return np.square(x - (codes - zero_point) * scale)


def least_error(x: np.ndarray, candidates: list[Parameters]) -> int:
    """Index of the candidate with the lowest mean squared error on `x`; the first of equals."""
    sums = [float(squared_errors(x, candidate).sum()) for candidate in candidates]
    # A float64 sum of n terms of 0 or more is within n * 2**-53 of the true one, relatively; among
    # sums this close to the lowest only the sign of the true difference (fsum) decides.
    reach = min(sums) * (1 + 4 * x.size * 2.0**-53)
    close = [index for index, total in enumerate(sums) if total <= reach]
    best, best_errors = close[0], squared_errors(x, candidates[close[0]])
    for index in close[1:]:
        errors = squared_errors(x, candidates[index])
        if np.array_equal(errors, best_errors):
            continue
        if math.fsum(itertools.chain(errors.ravel().tolist(), (-best_errors).ravel().tolist())) < 0:
            best, best_errors = index, errors
    return best


def pts_factors(x: ArrayLike) -> tuple[np.ndarray, int]:
    """Power-of-two factor quantization of a LayerNorm input ("PTS", later "PTF").

    Parameters
    ----------
    x : array of float32, [..., C]
        The last calibration batch, whose minimum and maximum are the range.

    Returns
    -------
    scale : ndarray of float64, [C]
        ``s / 8 * 2**alpha_c``, alpha_c of 0 to 3, with ``s = (max - min) / 255``, at least
        float32's epsilon.
    zero_point : int
        One for all channels, 0 to 255, computed with the largest step s.

    Raises
    ------
    HwsimError
        `x` is empty, or holds NaN, Inf or a value beyond float32.

    Notes
    -----
    alpha_c has the lowest mean squared error on channel c; of equals, the smallest.

    Source: FQ-ViT, section 4.1, equations 8 to 10, and its released PtfObserver.
    """
    values = real_array("x", x)
    if values.ndim == 0 or values.size == 0:
        raise HwsimError(f"x must hold at least one value a channel, not shape {values.shape}")
    scale, zero_point = range_parameters(float(values.min()), float(values.max()))
    candidates = [(scale / 8 * 2**alpha, zero_point) for alpha in range(4)]
    channels = np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T)
    return np.array([candidates[least_error(channel, candidates)][0] for channel in channels]), zero_point


def quantile(values: np.ndarray, fraction: float) -> float:
    """Quantile with linear interpolation, the interpolation rounded once (as torch does with fused multiply-add)."""
    rank = fraction * (values.size - 1)
    below, above = math.floor(rank), math.ceil(rank)
    chosen = np.partition(values, (below, above))
    low, high = Fraction(float(chosen[below])), Fraction(float(chosen[above]))
    return float(low + (Fraction(rank) - below) * (high - low))


def moving_average(values: list[float]) -> float:
    """Start at the first value, then go `SIGMA` of the way to each next one."""
    average = values[0]
    for value in values[1:]:
        average += SIGMA * (value - average)
    return average


def observe(name: str, batches: Iterable[ArrayLike]) -> tuple[float, int]:
    """Scale and zero point of a uint8 asymmetric, per-tensor activation quantizer.

    Parameters
    ----------
    name : {"minmax", "ema", "percentile", "omse"}
        The range of the batches:

        * minmax: minimum and maximum over all batches;
        * ema: moving averages (0.01) of each batch's minimum and maximum;
        * percentile: moving averages (0.01) of each batch's quantiles at
          ``1 - 0.99999`` and 0.99999, linearly interpolated;
        * omse: minmax, then of its range times ``1 - 0.01*i``, i of 0 to 89, the first with
          the lowest mean squared error on the last batch.
    batches : sequence of array of float32
        Calibration batches of any shapes, in order; their elements are taken together.

    Returns
    -------
    scale : float
        ``(max - min) / 255``, at least float32's epsilon.
    zero_point : int
        ``clip(-round_half_even(min / scale), 0, 255)``.

    Raises
    ------
    HwsimError
        The name is unknown, or a batch is missing, empty, or holds NaN, Inf or a
        value beyond float32.

    Notes
    -----
    The released percentile observer falls back from torch to NumPy's float32 result
    for batches past torch's limit of 2**24 elements; here all sizes are alike.

    Source: FQ-ViT's released observers; OMSE's search follows LAPQ (Nahshan et al., 2021).
    """
    if name not in ("minmax", "ema", "percentile", "omse"):
        raise HwsimError(f"observer must be minmax, ema, percentile or omse, not {name!r}")
    tensors = [real_array(f"batch {index}", batch).ravel() for index, batch in enumerate(batches)]
    empty = [index for index, tensor in enumerate(tensors) if tensor.size == 0]
    if not tensors or empty:
        raise HwsimError(f"batch {empty[0]} is empty" if empty else "observe needs at least one batch")

    if name == "percentile":
        low = moving_average([quantile(tensor, 1.0 - PERCENTILE) for tensor in tensors])
        high = moving_average([quantile(tensor, PERCENTILE) for tensor in tensors])
        return range_parameters(low, high)
    lows, highs = [float(tensor.min()) for tensor in tensors], [float(tensor.max()) for tensor in tensors]
    if name == "ema":
        return range_parameters(moving_average(lows), moving_average(highs))
    low, high = min(lows), max(highs)
    if name == "minmax":
        return range_parameters(low, high)
    shrinks = [1.0 - i * 0.01 for i in range(OMSE_STEPS)]
    candidates = [range_parameters(low * shrink, high * shrink) for shrink in shrinks]
    return candidates[least_error(tensors[-1], candidates)]
