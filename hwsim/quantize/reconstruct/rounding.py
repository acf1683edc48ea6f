"""Learned rounding of weights (AdaRound: Nagel et al., "Up or Down?", ICML 2020, eq. 23-24)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hwsim.quantize.weights import QuantizedWeight

# The sigmoid is stretched to (GAMMA, ZETA) and cut to [0, 1], so that both ends can be reached.
ZETA, GAMMA = 1.1, -0.1
_ABOVE_HALF = 0.5 + 1e-4


class LearnedRounding:
    """Weights of a linear layer, each between the codes below and above it.

    Parameters
    ----------
    weight : ndarray of float32 [outputs, inputs]
    quantized : QuantizedWeight
        Its scales and zero points stay.
    device : torch.device

    Attributes
    ----------
    variable : Tensor [outputs, inputs]
        What is learned; its rectified sigmoid begins as the weight's distance from the code below.
    """

    def __init__(self, weight: np.ndarray, quantized: QuantizedWeight, device: torch.device) -> None:
        self.quantized = quantized
        scale = quantized.scale.astype(np.float32)[:, None]
        if quantized.zero_point is None:
            half = 1 << (quantized.bits - 1)
            low, high = np.full(scale.shape, -half), np.full(scale.shape, half - 1)
        else:
            low = -quantized.zero_point[:, None]
            high = low + (1 << quantized.bits) - 1
        steps = weight / scale
        below = np.floor(steps)
        self._scale, self._low, self._high, self._below = (
            torch.from_numpy(np.asarray(array, np.float32)).to(device) for array in (scale, low, high, below)
        )
        rest = np.clip(steps - below, 0, 1)
        # Of two codes that are equally near the even one is taken.
        rest = np.where(rest == 0.5, np.where(np.rint(steps) > below, _ABOVE_HALF, 1 - _ABOVE_HALF), rest)
        share = (rest - GAMMA) / (ZETA - GAMMA)
        self.variable = torch.from_numpy(np.log(share / (1 - share)).astype(np.float32)).to(device).requires_grad_()

    def share(self) -> Tensor:
        """How far up each weight is rounded, 0 to 1."""
        return (torch.sigmoid(self.variable) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def soft(self, share: Tensor) -> Tensor:
        """Weights between their codes, [outputs, inputs]."""
        return torch.clamp(self._below + share, self._low, self._high) * self._scale

    @torch.no_grad()
    def settled(self) -> QuantizedWeight:
        """Weights that are rounded up where more than half of the way is learned; half is up."""
        codes = torch.clamp(self._below + (self.share() >= 0.5), self._low, self._high)
        centred = codes.cpu().numpy().astype(np.int64)
        zero = self.quantized.zero_point
        return replace(self.quantized, codes=centred if zero is None else centred + zero[:, None])


def undecided(share: Tensor, beta: Tensor | float) -> Tensor:
    """The regulariser: ``sum(1 - |2 share - 1| ** beta)``, 0 where every rounding is decided."""
    return (1 - (2 * share - 1).abs().pow(beta)).sum()
