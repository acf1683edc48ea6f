"""Q-ViT's quantizers and its rectification of queries and keys, as released."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from golden.errors import HwsimError
from golden.published.arguments import positive_scale, real_array, whole_number
from golden.published.rounding import rounded_quotient

LARGEST_BITS = 16
LARGEST_ZERO_POINT = 1 << 24


def lsq_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """First and last code: ``-2**(bits-1)``, ``2**(bits-1) - 1`` signed, 0 and ``2**bits - 1`` unsigned.

    Raises
    ------
    HwsimError
        `bits` is not 2 to 16.
    """
    bits = whole_number("bits", bits, 2, LARGEST_BITS)
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def lsq_quantize(x: ArrayLike, bits: int, scale: float, zero_point: float = 0.0, *, signed: bool = True) -> np.ndarray:
    """Codes ``round_half_even(clip(x / scale + z, first, last))`` with ``z = round_half_even(zero_point)``.

    Parameters
    ----------
    x : array of float, any shape
        Weights (signed, no zero point) or activations.
    bits : int
        Width of the code, 2 to 16.
    scale : float
        LSQ's step, above 0.
    zero_point : float
        As learned, in codes.
    signed : bool
        See `lsq_range`. The released code takes unsigned codes for activations without negative values.

    Returns
    -------
    codes : ndarray of int64, as `x`; a value is ``(code - z) * scale``

    Raises
    ------
    HwsimError
        An argument is out of range, or `x` holds NaN or Inf.

    Notes
    -----
    The released code has a scale and a zero point for each input feature of a linear layer, by which no integer product
    can be factored; call it once a feature for that.

    Source: S. K. Esser et al., "Learned Step Size Quantization", ICLR 2020, Eq. 1 and 2; Q-ViT (Li et al., NeurIPS
    2022), Eq. 1, and its released code.
    """
    first, last = lsq_range(bits, signed=signed)
    offset = round(float(real_array("zero_point", zero_point)))
    if abs(offset) > LARGEST_ZERO_POINT:
        raise HwsimError(f"zero_point must be between -{LARGEST_ZERO_POINT} and {LARGEST_ZERO_POINT}, not {zero_point}")
    values, step = real_array("x", x), positive_scale("scale", scale)
    # The clip's bounds are whole numbers, so it may follow the rounding.
    return np.clip(rounded_quotient(values, step, 2 * last + 2 + abs(offset), offset), first, last)


def lsq_dequantize(codes: ArrayLike, scale: float, zero_point: float = 0.0) -> np.ndarray:
    """Values ``(code - round_half_even(zero_point)) * scale`` of codes, float64.

    Raises
    ------
    HwsimError
        An argument is out of range.
    """
    offset = round(float(real_array("zero_point", zero_point)))
    return (real_array("codes", codes) - offset) * positive_scale("scale", scale)


def rectify(x: ArrayLike, gamma: ArrayLike, beta: ArrayLike, eps: float = 1e-5) -> np.ndarray:
    """Information rectification of queries or keys: LayerNorm over the channels of a head, float64.

    Parameters
    ----------
    x : array of float [..., d]
        Queries or keys of one head a row.
    gamma, beta : array of float [d]
        Shared by the heads.
    eps : float
        Added to the variance, which is that of all d channels.

    Raises
    ------
    HwsimError
        Shapes that do not fit, or values that are not finite.

    Notes
    -----
    The paper's Eq. 8 divides by its gamma and adds its beta before; the released code has this form.

    Source: the released code of Q-ViT (Li et al., NeurIPS 2022).
    """
    values, gain, shift = real_array("x", x), real_array("gamma", gamma), real_array("beta", beta)
    channels = values.shape[-1:] or (0,)
    if gain.shape != channels or shift.shape != channels:
        raise HwsimError(f"gamma and beta must have shape {channels}, not {gain.shape} and {shift.shape}")
    centred = values - values.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + eps)
    return centred / deviation * gain + shift
