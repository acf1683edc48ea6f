"""Uniform and log-sqrt2 quantizers and the scale reparameterization of RepQ-ViT as released; AdaLog takes the first."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from golden.errors import HwsimError
from golden.published.arguments import integer_array, positive_scale, real_array, whole_number
from golden.published.rounding import rounded_quotient

# Farthest zero point: ranges that do not reach to 0 have it outside the codes.
LARGEST_ZERO_POINT = 1 << 24


def asymmetric_quantize(x: ArrayLike, bits: int, scale: float, zero_point: int) -> np.ndarray:
    """Codes ``clip(round_half_even(x / scale) + zero_point, 0, 2**bits - 1)``.

    Parameters
    ----------
    x : array of float, any shape
    bits : int
        Width of the code, 1 to 16.
    scale : float
        Above 0.
    zero_point : int
        The code of 0, added behind the rounding.

    Returns
    -------
    codes : ndarray of int64, as `x`

    Raises
    ------
    HwsimError
        An argument is out of range, or `x` holds NaN or Inf.

    Notes
    -----
    FQ-ViT adds the zero point before it rounds: where ``x / scale`` is a tie and the zero point odd, its code is the
    other one. The quotient is that of the real numbers: where a float64 is close to a tie, rational numbers decide.

    Source: the released UniformQuantizer of RepQ-ViT and of AdaLog.
    """
    bits = whole_number("bits", bits, 1, 16)
    zero_point = whole_number("zero_point", zero_point, -LARGEST_ZERO_POINT, LARGEST_ZERO_POINT)
    scale = positive_scale("scale", scale)
    values = real_array("x", x)
    # What lies outside the codes is clipped either way; so no quotient is too large for an integer.
    codes = rounded_quotient(values, scale, (1 << bits) + abs(zero_point))
    return np.clip(codes + zero_point, 0, (1 << bits) - 1)


def asymmetric_dequantize(codes: ArrayLike, bits: int, scale: float, zero_point: int) -> np.ndarray:
    """Values ``(code - zero_point) * scale`` of codes, float64.

    Parameters
    ----------
    codes : array of int, any shape
        0 to ``2**bits - 1``.
    bits, scale, zero_point
        As for `asymmetric_quantize`.

    Raises
    ------
    HwsimError
        An argument is out of range.
    """
    bits = whole_number("bits", bits, 1, 16)
    zero_point = whole_number("zero_point", zero_point, -LARGEST_ZERO_POINT, LARGEST_ZERO_POINT)
    scale = positive_scale("scale", scale)
    return (integer_array("codes", codes, 0, (1 << bits) - 1) - zero_point) * scale


def log_sqrt2_quantize(x: ArrayLike, bits: int, scale: float) -> np.ndarray:
    """Log-sqrt2 codes of non-negative values.

    Parameters
    ----------
    x : array of float, any shape
    bits : int
        Width of the code, 1 to 8.
    scale : float
        Value of code 0, above 0.

    Returns
    -------
    codes : ndarray of int64, as `x`
        ``u = round_half_even(-2 * log2(x / scale))``, at least 0, where ``u < 2**bits``; else -1, the zero symbol.

    Raises
    ------
    HwsimError
        An argument is out of range, or `x` holds NaN or Inf.

    Notes
    -----
    The released code takes the logarithm of x as it is, so 0 and what is below it have no code: they are the zero
    symbol here. A tie, ``x / scale = 2**-((2u+1)/4)``, is irrational; u is found by comparing ``(x / scale)**4`` with
    powers of two where a float64 is close to one.

    Source: RepQ-ViT, section 3.3, and its released LogSqrt2Quantizer.
    """
    bits = whole_number("bits", bits, 1, 8)
    scale = positive_scale("scale", scale)
    values = real_array("x", x)
    flat = values.ravel()
    positive = flat > 0
    ratio = np.where(positive, flat, scale) / scale
    position = -2 * np.log2(np.minimum(ratio, 1.0))
    codes = np.rint(position).astype(np.int64)
    for i in np.flatnonzero(np.abs(position - np.floor(position) - 0.5) < 1e-6).tolist():
        above = int(np.floor(position[i])) + 1
        # -2 log2(y) > u - 1/2  <=>  y**4 < 2**-(2u-1)
        exact = (Fraction(flat[i].item()) / Fraction(scale)) ** 4
        codes[i] = above if exact < Fraction(1, 1 << (2 * above - 1)) else above - 1
    codes[~positive | (codes >> bits > 0)] = -1
    return codes.reshape(values.shape)


def log_sqrt2_dequantize(codes: ArrayLike, bits: int, scale: float) -> np.ndarray:
    """Values ``scale * 2**-ceil(u/2) * (sqrt(2) if u is odd else 1)``, float64; the zero symbol -1 gives 0.0.

    Parameters
    ----------
    codes : array of int, any shape
        0 to ``2**bits - 1``, or -1.
    bits, scale
        As for `log_sqrt2_quantize`.

    Raises
    ------
    HwsimError
        An argument is out of range.

    Notes
    -----
    The order of the released code: the power of two, then the parity's factor, then the scale.
    """
    bits = whole_number("bits", bits, 1, 8)
    scale = positive_scale("scale", scale)
    symbols = integer_array("codes", codes, -1, (1 << bits) - 1)
    powers = np.ldexp(1.0, -((symbols + 1) // 2))
    values = powers * np.where(symbols % 2 == 1, np.sqrt(2.0), 1.0) * scale
    return np.where(symbols < 0, 0.0, values)


class Reparameterized(NamedTuple):
    """LayerNorm and linear layer behind one scale a tensor, float64, and that scale with its zero point."""

    gamma: np.ndarray
    beta: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    scale: float
    zero_point: float


def reparameterize(
    gamma: ArrayLike, beta: ArrayLike, weight: ArrayLike, bias: ArrayLike, scale: ArrayLike, zero_point: ArrayLike
) -> Reparameterized:
    """Scale reparameterization of a LayerNorm and the linear layer behind it.

    Parameters
    ----------
    gamma, beta : array of float [C]
        Of the LayerNorm.
    weight, bias : array of float [O, C], [O]
        Of the linear layer.
    scale, zero_point : array [C]
        Quantizers of the channels; scales above 0.

    Returns
    -------
    Reparameterized
        With ``s = mean(scale)``, ``z = mean(zero_point)``, ``r1 = scale / s`` and ``r2 = zero_point - z``::

            gamma' = gamma / r1                  W' = W * r1
            beta' = (beta + scale * r2) / r1     bias' = bias - W @ (scale * r2)

    Raises
    ------
    HwsimError
        An argument is out of range or of the wrong shape.

    Notes
    -----
    z is not rounded, as released; AdaLog's released code rounds it. There the offset reads
    ``b = z * s - zero_point * s`` and ``beta' = beta / r1 - b``, ``bias' = bias + W' @ b``, which is the same.

    Source: RepQ-ViT, equations 9 to 13, and its released code.
    """
    arrays = {"gamma": gamma, "beta": beta, "weight": weight, "bias": bias, "scale": scale, "zero_point": zero_point}
    reals = {name: real_array(name, array) for name, array in arrays.items()}
    outputs, channels = reals["weight"].shape if reals["weight"].ndim == 2 else (0, 0)
    for name, array in reals.items():
        shape = {"weight": (outputs, channels), "bias": (outputs,)}.get(name, (channels,))
        if array.shape != shape or not array.size:
            raise HwsimError(f"{name} must have shape {shape} by the weight [outputs, channels], not {array.shape}")
    if reals["scale"].min() <= 0:
        raise HwsimError(f"scale must be above 0, but reaches {reals['scale'].min()}")
    s, z = float(reals["scale"].mean()), float(reals["zero_point"].mean())
    r1, offset = reals["scale"] / s, reals["scale"] * (reals["zero_point"] - z)
    return Reparameterized(
        reals["gamma"] / r1,
        (reals["beta"] + offset) / r1,
        reals["weight"] * r1,
        reals["bias"] - reals["weight"] @ offset,
        s,
        z,
    )
