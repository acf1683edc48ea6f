"""Grids: where calibrated codes lie, with their fake-quantization in torch.

A grid is what calibration finds for one point. Scales are the float32 values of
the published procedures, kept as Python floats.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from golden.adalog import adalog_tables

FLOAT32_EPS = float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class UniformGrid:
    """``(code - zero_point) * scale``, unsigned codes, one scale a tensor.

    Parameters
    ----------
    scale : float
        A float32 value above 0.
    zero_point : int
    bits : int
    """

    scale: float
    zero_point: int
    bits: int

    @property
    def highest(self) -> int:
        return (1 << self.bits) - 1

    def codes(self, x: Tensor) -> Tensor:
        """Codes as float32; the zero point is added before rounding, as FQ-ViT does."""
        return (x / self.scale + self.zero_point).round().clamp(0, self.highest)

    def values(self, codes: Tensor) -> Tensor:
        return (codes - self.zero_point) * self.scale

    def scales(self, channels: int) -> np.ndarray:
        """Scale of every channel, float64."""
        return np.full(channels, self.scale)


@dataclass(frozen=True)
class PowerOfTwoGrid:
    """``(code - zero_point) * base * 2**alpha[c]``: FQ-ViT's power-of-two scales of LayerNorm inputs.

    Parameters
    ----------
    base : float
        A float32 value above 0.
    alpha : ndarray of int64 [C]
        0 to 3.
    zero_point : int
    bits : int
    """

    base: float
    alpha: np.ndarray
    zero_point: int
    bits: int
    _steps: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def highest(self) -> int:
        return (1 << self.bits) - 1

    def _step(self, device: torch.device) -> Tensor:
        if device not in self._steps:
            steps = np.float32(self.base) * np.exp2(self.alpha).astype(np.float32)
            self._steps[device] = torch.from_numpy(steps).to(device)
        return self._steps[device]

    def codes(self, x: Tensor) -> Tensor:
        return (x / self._step(x.device) + self.zero_point).round().clamp(0, self.highest)

    def values(self, codes: Tensor) -> Tensor:
        return (codes - self.zero_point) * self._step(codes.device)

    def scales(self, channels: int) -> np.ndarray:
        """Scale of every channel, float64."""
        return self.base * np.exp2(self.alpha)


@dataclass(frozen=True)
class Log2Grid:
    """``2**-code`` with a zero symbol past the last code, of a Log-Int-Softmax.

    Parameters
    ----------
    bits : int
    """

    bits: int

    @property
    def zero_symbol(self) -> int:
        return 1 << self.bits

    def values(self, codes: Tensor) -> Tensor:
        return torch.where(codes >= self.zero_symbol, 0.0, torch.exp2(-codes))


@dataclass(frozen=True)
class AdaLogGrid:
    """``2**-T1[code] * T2[code] / (2L-2)`` with a zero symbol past the last code (AdaLog, eq. 7-9).

    Parameters
    ----------
    bits : int
    q : int
        Numerator of log2 of the base, over 37.
    """

    bits: int
    q: int

    @property
    def zero_symbol(self) -> int:
        return 1 << self.bits

    def codes(self, x: Tensor) -> Tensor:
        """Codes of probabilities as float32 (the scale is fixed at 1)."""
        position = (-torch.log2(x.clamp(min=1e-15)) * 37 / self.q).round()
        return position.clamp(0, self.zero_symbol)

    def values(self, codes: Tensor) -> Tensor:
        shift, mantissa = adalog_tables(self.bits, self.q)
        entry = np.append(np.exp2(-shift.astype(np.float64)) * mantissa / ((2 << self.bits) - 2), 0.0)
        return torch.from_numpy(entry.astype(np.float32)).to(codes.device)[codes.long()]


Grid = UniformGrid | PowerOfTwoGrid | Log2Grid | AdaLogGrid
