"""Observers: from the activations of calibration batches to a grid.

Source: FQ-ViT's released observers, see `golden.published.observe` and
`golden.published.pts_factors` for their definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from golden.errors import HwsimError
from hwsim.quantize.grids import FLOAT32_EPS, AdaLogGrid, Grid, Log2Grid, PowerOfTwoGrid, UniformGrid


class Observer(Protocol):
    """State of one point during calibration."""

    def update(self, x: Tensor) -> None:
        """See one batch of the activation."""

    def grid(self, last: Tensor) -> Grid:
        """The grid, given the last batch (already seen by `update`)."""


class Quantizer(Protocol):
    """What a recipe puts at a point; calibrating it starts with an observer."""

    def observer(self) -> Observer: ...


@dataclass(frozen=True)
class Uniform:
    """Unsigned asymmetric codes of one scale a tensor, from the running minimum and maximum.

    Parameters
    ----------
    bits : int
    """

    bits: int = 8

    def observer(self) -> Observer:
        return _MinMax(self.bits)


@dataclass(frozen=True)
class PowerOfTwo:
    """FQ-ViT's PTS: one scale and zero point, and a factor 1, 2, 4 or 8 a channel (last axis).

    Parameters
    ----------
    bits : int
    """

    bits: int = 8

    def observer(self) -> Observer:
        return _PowerOfTwoFactor(self.bits)


@dataclass(frozen=True)
class Log2:
    """Log2 codes by Log-Int-Softmax.

    Parameters
    ----------
    bits : int
        1 to 5.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 5:
            raise HwsimError(
                f"Log-Int-Softmax takes 1 to 5 attention bits (codes past 2**-32 are zero), not {self.bits}; "
                "use a uniform attention quantizer for more"
            )

    def observer(self) -> Observer:
        return _Fixed(Log2Grid(self.bits))


@dataclass(frozen=True)
class AdaLog:
    """AdaLog codes of probabilities; q has the smallest squared error over the calibration batches.

    Parameters
    ----------
    bits : int
        2 to 8.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise HwsimError(f"AdaLog takes 2 to 8 attention bits, not {self.bits}")

    def observer(self) -> Observer:
        return _AdaLogBase(self.bits)


def asymmetric_grid(low: Tensor, high: Tensor, bits: int) -> tuple[float, int]:
    """Scale and zero point of a range: ``(high-low)/(2**bits-1)`` in float32, at least its epsilon."""
    levels = (1 << bits) - 1
    scale = ((high - low) / levels).clamp(min=FLOAT32_EPS)
    zero_point = (0 - (low / scale).round()).clamp(0, levels)
    return float(scale), int(zero_point)


class _MinMax:
    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.min(), x.max()

    def update(self, x: Tensor) -> None:
        low, high = self._range(x)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def range(self) -> tuple[Tensor, Tensor]:
        if self.low is None or self.high is None:
            raise HwsimError("calibration saw no batch; give at least one image")
        return self.low, self.high

    def grid(self, last: Tensor) -> Grid:
        low, high = self.range()
        return UniformGrid(*asymmetric_grid(low, high, self.bits), self.bits)


class _PowerOfTwoFactor(_MinMax):
    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.reshape(-1, x.shape[-1])
        return rows.amin(dim=0), rows.amax(dim=0)

    def grid(self, last: Tensor) -> Grid:
        low, high = self.range()
        largest, zero_point = asymmetric_grid(low.min(), high.max(), self.bits)
        base = float(torch.tensor(largest, dtype=torch.float32) / 8)
        rows = last.reshape(-1, last.shape[-1])
        errors = []
        for alpha in range(4):
            grid = UniformGrid(base * 2**alpha, zero_point, self.bits)
            errors.append((rows - grid.values(grid.codes(rows))).square().mean(dim=0))
        # argmin takes the first of equal errors: the smaller factor, as released.
        best = torch.stack(errors).argmin(dim=0)
        return PowerOfTwoGrid(base, best.cpu().numpy().astype("int64"), zero_point, self.bits)


class _Fixed:
    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def update(self, x: Tensor) -> None:
        pass

    def grid(self, last: Tensor) -> Grid:
        return self._grid


class _AdaLogBase:
    CANDIDATES = range(10, 138)

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.errors = [0.0] * len(self.CANDIDATES)

    def update(self, x: Tensor) -> None:
        for index, q in enumerate(self.CANDIDATES):
            grid = AdaLogGrid(self.bits, q)
            self.errors[index] += float((x - grid.values(grid.codes(x))).square().sum())

    def grid(self, last: Tensor) -> Grid:
        best = min(range(len(self.errors)), key=self.errors.__getitem__)
        return AdaLogGrid(self.bits, self.CANDIDATES[best])
