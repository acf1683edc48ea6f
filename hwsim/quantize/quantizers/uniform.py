"""Uniform codes: one scale and zero point a tensor, or one a head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden.errors import HwsimError
from hwsim.quantize.quantizers.protocol import Observer
from hwsim.quantize.ranges import check_range, new_range

FLOAT32_EPS = float(torch.finfo(torch.float32).eps)
# Values of a search at once: on a processor they stay in its second-level cache.
VALUES_AT_ONCE = {"cpu": 1 << 16}


def _codes(x: Tensor, scale: Tensor | float, zero_point: Tensor | int, highest: int, round_first: bool) -> Tensor:
    """Half-to-even rounding with the zero point behind it or in front."""
    codes = (x / scale).round() + zero_point if round_first else (x / scale + zero_point).round()
    return codes.clamp(0, highest)


def _order(round_first: bool) -> dict[str, bool]:
    """What a record says of the order: nothing of the usual one, which older files have."""
    return {"round_first": True} if round_first else {}


@dataclass(frozen=True)
class UniformGrid:
    """``(code - zero_point) * scale``, unsigned codes, one scale a tensor.

    Parameters
    ----------
    scale : float
        A float32 value above 0.
    zero_point : int
    bits : int
    round_first : bool
        Add the zero point behind the rounding, as PTQ4ViT, RepQ-ViT and AdaLog do; FQ-ViT adds it before. They differ
        where a value lies in the middle of two codes and the zero point is odd.
    """

    scale: float
    zero_point: int
    bits: int
    round_first: bool = False

    @property
    def highest(self) -> int:
        return (1 << self.bits) - 1

    def codes(self, x: Tensor) -> Tensor:
        """Codes as float32."""
        return _codes(x, self.scale, self.zero_point, self.highest, self.round_first)

    def values(self, codes: Tensor) -> Tensor:
        return (codes - self.zero_point) * self.scale

    def scales(self, channels: int) -> np.ndarray:
        """Scale of every channel (or head), float64."""
        return np.full(channels, self.scale)

    def zero_points(self, count: int) -> np.ndarray:
        """Zero point of every head, int64."""
        return np.full(count, self.zero_point)

    def record(self) -> dict[str, Any]:
        return {"scale": self.scale, "zero_point": self.zero_point, **_order(self.round_first)}


@dataclass(frozen=True)
class HeadGrid:
    """`UniformGrid` with a scale and a zero point for each head, of tensors [..., heads, T, d].

    Parameters
    ----------
    scale : ndarray of float32 [heads]
    zero_point : ndarray of int64 [heads]
    bits : int
    round_first : bool
        As in `UniformGrid`.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    bits: int
    round_first: bool = False
    _tensors: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def highest(self) -> int:
        return (1 << self.bits) - 1

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._tensors:
            arrays = (self.scale.astype(np.float32), self.zero_point.astype(np.float32))
            scale, zero_point = (torch.from_numpy(array).to(device)[:, None, None] for array in arrays)
            self._tensors[device] = scale, zero_point
        return self._tensors[device]

    def codes(self, x: Tensor) -> Tensor:
        scale, zero_point = self._on(x.device)
        return _codes(x, scale, zero_point, self.highest, self.round_first)

    def values(self, codes: Tensor) -> Tensor:
        scale, zero_point = self._on(codes.device)
        return (codes - zero_point) * scale

    def scales(self, count: int) -> np.ndarray:
        """Scale of every head, float64."""
        assert count == len(self.scale)
        return self.scale.astype(np.float64)

    def zero_points(self, count: int) -> np.ndarray:
        """Zero point of every head, int64."""
        assert count == len(self.zero_point)
        return self.zero_point

    def record(self) -> dict[str, Any]:
        return {"scale": self.scale.tolist(), "zero_point": self.zero_point.tolist(), **_order(self.round_first)}


@dataclass(frozen=True)
class Uniform:
    """Unsigned codes of one scale a tensor, or one a head.

    Parameters
    ----------
    bits : int
        1 to 16.
    range : {"minmax", "ema", "percentile", "omse"}
        See `hwsim.quantize.ranges`. Symmetric and per-head codes take minimum and maximum.
    symmetric : bool
        Zero point in the middle, ``2**(bits-1)``, and scale ``max|x| / (2**(bits-1) - 0.5)``:
        PTQ4ViT's signed codes.
    heads : bool
        A scale for each head; for points with a head axis (query, key, value).
    """

    bits: int = 8
    range: str = "minmax"
    symmetric: bool = False
    heads: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise HwsimError(f"a uniform quantizer takes 1 to 16 bits, not {self.bits}")
        check_range(self.range)
        if self.range != "minmax" and (self.symmetric or self.heads):
            raise HwsimError(f"a symmetric or per-head quantizer takes range=minmax, not {self.range}")

    def observer(self) -> Observer:
        if self.symmetric:
            return _Symmetric(self)
        return _AsymmetricHeads(self.bits) if self.heads else RangeObserver(self)


def asymmetric_grid(low: Tensor, high: Tensor, bits: int) -> tuple[float, int]:
    """Scale and zero point of a range: ``(high-low)/(2**bits-1)`` in float32, at least its epsilon.

    The range of a constant is widened to 0, so that the constant has a code; the released code gives it
    the smallest scale, whose codes end next to 0.
    """
    levels = (1 << bits) - 1
    if low == high:
        low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / levels).clamp(min=FLOAT32_EPS)
    zero_point = (0 - (low / scale).round()).clamp(0, levels)
    return float(scale), int(zero_point)


def _squared_errors(x: Tensor, grids: Sequence[UniformGrid]) -> Tensor:
    """Squared error of quantizing `x` on each grid, summed: float64 [grids]."""
    sums = torch.zeros(len(grids), dtype=torch.float64, device=x.device)
    values = x.reshape(-1)
    for part in values.split(VALUES_AT_ONCE.get(x.device.type, max(1, len(values)))):
        for index, grid in enumerate(grids):
            sums[index] += (part - grid.values(grid.codes(part))).square().sum(dtype=torch.float64)
    return sums


class RangeObserver:
    """The range of a whole tensor, as `Uniform.range` estimates it."""

    def __init__(self, quantizer: Uniform) -> None:
        self.bits = quantizer.bits
        self.range = new_range(quantizer.range)

    def update(self, x: Tensor) -> None:
        self.range.update(x)

    def grid(self, last: Tensor) -> UniformGrid:
        def errors(ranges: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
            return _squared_errors(
                last, [UniformGrid(*asymmetric_grid(*ends, self.bits), self.bits) for ends in ranges]
            )

        low, high = self.range.settle(errors)
        return UniformGrid(*asymmetric_grid(low, high, self.bits), self.bits)


class _AsymmetricHeads:
    """Minimum and maximum of each head."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.ends: tuple[Tensor, Tensor] | None = None

    def update(self, x: Tensor) -> None:
        rows = x.movedim(-3, 0).flatten(1)
        low, high = rows.amin(dim=1), rows.amax(dim=1)
        if self.ends is not None:
            low, high = torch.minimum(self.ends[0], low), torch.maximum(self.ends[1], high)
        self.ends = low, high

    def grid(self, last: Tensor) -> HeadGrid:
        if self.ends is None:
            raise HwsimError("calibration saw no batch; give at least one image")
        heads = [asymmetric_grid(low, high, self.bits) for low, high in zip(*self.ends, strict=True)]
        scale, zero_point = zip(*heads, strict=True)
        return HeadGrid(np.array(scale, np.float32), np.array(zero_point, np.int64), self.bits)


class _Symmetric:
    def __init__(self, quantizer: Uniform) -> None:
        self.quantizer = quantizer
        self.largest: Tensor | None = None

    def update(self, x: Tensor) -> None:
        magnitude = x.abs()
        largest = magnitude.movedim(-3, 0).flatten(1).amax(dim=1) if self.quantizer.heads else magnitude.max()
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)

    def grid(self, last: Tensor) -> UniformGrid | HeadGrid:
        if self.largest is None:
            raise HwsimError("calibration saw no batch; give at least one image")
        bits = self.quantizer.bits
        middle = 1 << (bits - 1)
        scale = (self.largest / (middle - 0.5)).clamp(min=FLOAT32_EPS).cpu()
        if self.quantizer.heads:
            return HeadGrid(scale.numpy(), np.full(len(scale), middle), bits)
        return UniformGrid(float(scale), middle, bits)
