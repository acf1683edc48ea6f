"""FQ-ViT's integer LayerNorm as released: per token and channel an 8-bit truncated mantissa and a shift."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from golden.arithmetic import round_half_even_shift
from golden.errors import HwsimError
from golden.published.arguments import integer_array, positive_scale, real_array

LARGEST_CODE = 2**15


def mantissa_and_shift(numerator: int, denominator: int) -> tuple[int, int]:
    """Truncated mantissa M and shift N of ``|A| = sqrt(numerator / denominator)``.

    ``N = clip(7 - floor(log2 |A|), 0, 31)`` and ``M = clip(floor(|A| * 2**N), 0, 255)``;
    A = 0 has N = 31 (its logarithm is -infinity) and M = 0. M is thereby the largest
    integer with ``M**2 * denominator <= numerator * 4**N``, at most 255.
    """
    if numerator == 0:
        return 0, 31
    log2_square = numerator.bit_length() - denominator.bit_length()
    if numerator << max(-log2_square, 0) < denominator << max(log2_square, 0):
        log2_square -= 1
    shift = min(max(7 - (log2_square >> 1), 0), 31)
    return min(math.isqrt((numerator << 2 * shift) // denominator), 255), shift


def round_difference(p: int, root: int, radicand: int, divisor: int) -> int:
    """``(p - root * sqrt(radicand)) / divisor`` rounded half to even; divisor above 0."""
    # h = floor of twice the quotient: its parity says on which side of the half the rest lies.
    square = 4 * root * root * radicand
    twice_root = math.isqrt(square)
    rational = twice_root * twice_root == square
    twice = 2 * p + twice_root if root < 0 else 2 * p - twice_root - (not rational)
    h, rest = divmod(twice, divisor)
    tie = rational and rest == 0
    return ((h + 1) >> 1) - (tie and h & 3 == 1)


def channel_constants(
    first: int, spread: int, channels: int, gamma: float, beta: float, s_out: float
) -> tuple[int, int, int]:
    """``(signed M, N, B)`` of one channel of one token.

    Parameters
    ----------
    first, spread : int
        ``S1 = sum X`` and ``D = C * sum X**2 - S1**2``, above 0, of the token.
    channels : int
        C.
    gamma, beta, s_out : float
        Taken exactly as the rational numbers they are.
    """
    gamma_n, gamma_d = gamma.as_integer_ratio()
    beta_n, beta_d = beta.as_integer_ratio()
    out_n, out_d = s_out.as_integer_ratio()
    # A = C * gamma / (sqrt(D) * s_out)
    mantissa, shift = mantissa_and_shift((channels * gamma_n * out_d) ** 2, (gamma_d * out_n) ** 2 * spread)
    # B = (beta - S1 * gamma / sqrt(D)) / s_out * 2**N, with 1 / sqrt(D) = sqrt(D) / D
    offset = round_difference(
        beta_n * gamma_d * out_d * spread << shift,
        first * gamma_n * beta_d * out_d << shift,
        spread,
        beta_d * gamma_d * out_n * spread,
    )
    return (-mantissa if gamma < 0 else mantissa), shift, offset


def int_layernorm(
    q: ArrayLike, alpha: ArrayLike, s_min: float, gamma: ArrayLike, beta: ArrayLike, s_out: float
) -> np.ndarray:
    """Integer LayerNorm of a power-of-two-factor quantized input.

    Parameters
    ----------
    q : array of int, [..., C]
        ``q - zp`` of the tokens, -32768 to 32768 (9 bits signed in the published
        network).
    alpha : array of int, [C]
        Power-of-two factors, 0 to 3: channel c has the scale ``s_c = s * 2**alpha[c]``.
    s_min : float
        Smallest scale in use, above 0. The result does not depend on it: it cancels
        against the standard deviation.
    gamma, beta : array of float, [C]
        LayerNorm's weight and bias, not quantized.
    s_out : float
        Scale of the quantizer that follows, above 0.

    Returns
    -------
    Y : ndarray of int64, [..., C]
        The output divided by `s_out`: no zero point, no clamp.

    Raises
    ------
    HwsimError
        An argument is out of range or of the wrong shape, or an output leaves 64 bits.

    Notes
    -----
    The channel factors are relative to the smallest scale that is used,
    ``f_c = 2**(alpha_c - min alpha)``, as in the released code, whether or not some
    alpha is 0; so all alphas equal to 3 is the same as all 0. LayerNorm's epsilon is
    ignored, as there. A token with ``D = 0`` (all X equal), where the released code
    gives NaN, has ``Y = round_half_even(beta / s_out)``.

    Square roots never become numbers: M and B are found by comparing integers, so
    the result is that of real arithmetic. The released float64 code can fall short
    of it where A is exactly a multiple of ``2**-N`` or B a tie, which takes a D that
    is a square.

    Source: FQ-ViT, section 4.1, and its released QIntLayerNorm (mode "int").
    """
    positive_scale("s_min", s_min)
    s_out = positive_scale("s_out", s_out)
    codes = integer_array("q", q, -LARGEST_CODE, LARGEST_CODE)
    if codes.ndim == 0 or codes.shape[-1] == 0:
        raise HwsimError(f"q must have tokens of at least one channel, not shape {codes.shape}")
    channels = codes.shape[-1]
    factors = integer_array("alpha", alpha, 0, 3)
    weight, bias = real_array("gamma", gamma), real_array("beta", beta)
    for name, array in (("alpha", factors), ("gamma", weight), ("beta", bias)):
        if array.shape != (channels,):
            raise HwsimError(f"{name} must have shape ({channels},) like the channels of q, not {array.shape}")

    X = codes << (factors - factors.min())
    parameters = list(zip(weight.tolist(), bias.tolist(), strict=True))
    beta_only = [round(Fraction(b) / Fraction(s_out)) for _, b in parameters]
    Y = []
    for token in X.reshape(-1, channels).tolist():
        first = sum(token)
        spread = channels * sum(x * x for x in token) - first * first
        if spread == 0:
            Y += beta_only
            continue
        for x, (g, b) in zip(token, parameters, strict=True):
            mantissa, shift, offset = channel_constants(first, spread, channels, g, b, s_out)
            Y.append(round_half_even_shift(mantissa * x + offset, shift))
    try:
        return np.array(Y, dtype=np.int64).reshape(codes.shape)
    except OverflowError:
        raise HwsimError(f"s_out {s_out} is too small for gamma and beta: an output leaves 64 bits") from None
