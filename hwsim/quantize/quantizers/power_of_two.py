"""FQ-ViT's power-of-two scales of LayerNorm inputs (PTS)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwsim.quantize.quantizers.protocol import Observer
from hwsim.quantize.quantizers.uniform import UniformGrid, asymmetric_grid
from hwsim.quantize.ranges import MinMax


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

    def alpha_of(self, channels: int) -> np.ndarray:
        """Exponent of every channel; merged patches repeat those of one patch."""
        return np.tile(self.alpha, channels // len(self.alpha))

    def scales(self, channels: int) -> np.ndarray:
        """Scale of every channel, float64."""
        return self.base * np.exp2(self.alpha_of(channels))

    def record(self) -> dict[str, Any]:
        return {"base": self.base, "alpha": self.alpha.tolist(), "zero_point": self.zero_point}


@dataclass(frozen=True)
class PowerOfTwo:
    """FQ-ViT's PTS: one scale and zero point, and a factor 1, 2, 4 or 8 a channel (last axis).

    The range is the minimum and maximum of all batches, the factors are those with the least
    squared error on the last one, as released.

    Parameters
    ----------
    bits : int
    """

    bits: int = 8

    def observer(self) -> Observer:
        return _PowerOfTwoFactor(self.bits)


class _PowerOfTwoFactor:
    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.range = MinMax()

    def update(self, x: Tensor) -> None:
        self.range.update(x)

    def grid(self, last: Tensor) -> PowerOfTwoGrid:
        rows = last.reshape(-1, last.shape[-1])
        low, high = self.range.settle(lambda ranges: rows.new_zeros(len(ranges)))
        largest, zero_point = asymmetric_grid(low, high, self.bits)
        base = float(torch.tensor(largest, dtype=torch.float32) / 8)
        errors = []
        for alpha in range(4):
            grid = UniformGrid(base * 2**alpha, zero_point, self.bits)
            errors.append((rows - grid.values(grid.codes(rows))).square().mean(dim=0))
        # argmin takes the first of equal errors: the smaller factor, as released.
        best = torch.stack(errors).argmin(dim=0)
        return PowerOfTwoGrid(base, best.cpu().numpy().astype("int64"), zero_point, self.bits)
