"""What all quantizers of logarithmic codes share: codes by counting thresholds, values by a table."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from golden.errors import HwsimError

# The smallest value of GELU: what shifted codes add, and the negative range of twin codes just covers.
GELU_DEPTH = 0.16997124254703522


def check_depth(x: Tensor, name: str) -> None:
    """Refuse values that stay negative when GELU's depth is added.

    Raises
    ------
    HwsimError
        Names the smallest value.
    """
    least = float(x.min())
    if least < -GELU_DEPTH - 1e-6:
        raise HwsimError(
            f"{name} codes take values of at least {-GELU_DEPTH:.4f}, which is GELU's minimum, not {least:.4g}; "
            "put them behind GELU alone (role gelu)"
        )


def log_boundaries(bits: int, exponent: float, scale: float) -> np.ndarray:
    """Values at which the code changes: ``scale * 2**-((code + 1/2) * exponent)``, float64 [2**bits], falling.

    Parameters
    ----------
    bits : int
    exponent : float
        log2 of the base.
    scale : float
        What code 0 stands for.
    """
    boundaries: np.ndarray = scale * np.exp2(-(np.arange(1 << bits) + 0.5) * exponent)
    return boundaries


def codes_by_thresholds(x: Tensor, boundaries: np.ndarray) -> Tensor:
    """Count of boundaries at or above each value, as float32: all of them is the zero symbol."""
    rising = torch.from_numpy(boundaries[::-1].copy()).to(x.device, x.dtype)
    return (len(boundaries) - torch.bucketize(x, rising)).float()


def code_values(entries: np.ndarray, codes: Tensor) -> Tensor:
    """Table entries of codes, float32; codes outside the table are moved to its ends."""
    table = torch.from_numpy(entries.astype(np.float32)).to(codes.device)
    return table[codes.clamp(0, len(entries) - 1).long()]
