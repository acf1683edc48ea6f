"""Log-Int-Softmax in torch, for calibration and the fake-quantized network."""

from __future__ import annotations

import torch
from torch import Tensor

from golden.log_softmax import exponential_constants, exponential_table

# The released code's i-exp fraction bits.
PUBLISHED_FRACTION_BITS = 30


def _log2_codes(exponential: Tensor, bits: int) -> Tensor:
    """Codes, as float32, of exponentials whose sum is that of the row; see `golden.log_softmax`."""
    total = exponential.sum(dim=-1, keepdim=True)
    ratio = (total / exponential).round()
    # ratio = mantissa * 2**exponent with the mantissa in [0.5, 1), so its octave is exponent - 1.
    mantissa, exponent = torch.frexp(ratio)
    code = exponent - 1 + ((mantissa >= 0.75) & (exponent > 1)).int()
    return code.masked_fill(exponential <= 0, 1 << bits).clamp(max=1 << bits).float()


def log_int_softmax(scores: Tensor, scale: float, bits: int) -> Tensor:
    """Log2 codes (float32) of integer scores held in float, rows on the last axis."""
    constants = exponential_constants(scale)
    below_maximum = (scores.amax(dim=-1, keepdim=True) - scores).long()
    count = int(below_maximum.max()) + 1
    polynomial, shift = exponential_table(constants, PUBLISHED_FRACTION_BITS, count)
    table = torch.from_numpy(polynomial << shift).double().to(scores.device)
    return _log2_codes(table[below_maximum], bits)


def log_int_softmax_of_reals(scores: Tensor, scale: float, bits: int) -> Tensor:
    """Log2 codes (float32) of scores in units of `scale` that are not rounded to integers.

    The released code meets this case in its last calibration batch: the same
    procedure, with floors where the integers would need none.
    """
    x0, b, c = (float(constant) for constant in exponential_constants(scale).values())
    x = (scores - scores.amax(dim=-1, keepdim=True)).double().clamp(min=PUBLISHED_FRACTION_BITS * x0)
    octave = torch.floor(x / x0)
    r = x - x0 * octave
    exponential = torch.floor((r * (r + b) + c) * torch.exp2(PUBLISHED_FRACTION_BITS - octave)).clamp(min=0)
    return _log2_codes(exponential, bits)
