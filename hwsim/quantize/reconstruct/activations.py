"""Quantizers of activations whose scale is learned, through each of which a gradient passes straight.

Uniform steps are learned as LSQ does (Esser et al., ICLR 2020); the zero point stays. Logarithmic codes have a base
and a scale: the base stays, and the rounding of the logarithm passes its gradient straight, as in AdaLog's released
code, ``d out / d x = out / x``. The scale then has a gradient where values are above it alone: inside the codes what
the factor gains, the exponent loses.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from golden.adalog import BASE_DENOMINATOR
from golden.errors import HwsimError
from hwsim.quantize.lsq import lsq
from hwsim.quantize.quantizers.adalog import AdaLogGrid
from hwsim.quantize.quantizers.log_sqrt2 import LogSqrt2Grid, ShiftLogSqrt2Grid
from hwsim.quantize.quantizers.logarithm import GELU_DEPTH, log_boundaries
from hwsim.quantize.quantizers.protocol import Grid
from hwsim.quantize.quantizers.shift_adalog import ShiftAdaLogGrid
from hwsim.quantize.quantizers.uniform import HeadGrid, UniformGrid

# Of the first scale: no scale may fall below this share.
LEAST_SHARE = 1 / 16

LogGrid = AdaLogGrid | ShiftAdaLogGrid | LogSqrt2Grid | ShiftLogSqrt2Grid


class LearnedGrid(Protocol):
    """A quantizer of one point during the reconstruction.

    Attributes
    ----------
    share : Tensor
        What is learned: the scale, or that of each head, in units of the first one.
    """

    share: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Quantized values, with gradients."""
        ...

    def settled(self) -> Grid:
        """The grid with the learned scale."""
        ...


def learned_grid(grid: Grid, point: str, device: torch.device) -> LearnedGrid:
    """What learns the scale of a grid.

    Raises
    ------
    HwsimError
        A kind of grid whose scale is not learned; names the point.
    """
    if isinstance(grid, UniformGrid | HeadGrid):
        return _LearnedUniform(grid, device)
    if isinstance(grid, LogGrid):
        return _LearnedLog(grid, device)
    raise HwsimError(
        f"{point}: the scale of a {type(grid).__name__} is not learned; use uniform, AdaLog or log-sqrt2 quantizers, "
        "or reconstruct the weights alone"
    )


def _settled_scale(first: np.ndarray, share: Tensor) -> np.ndarray:
    """Learned scales, float32 of the first ones' shape."""
    return (first * share.detach().cpu().numpy().reshape(first.shape)).astype(np.float32)


class _LearnedUniform:
    def __init__(self, grid: UniformGrid | HeadGrid, device: torch.device) -> None:
        self.grid = grid
        shape = (-1, 1, 1) if isinstance(grid, HeadGrid) else ()
        zero = torch.as_tensor(np.asarray(grid.zero_point, np.float32).reshape(shape), device=device)
        self._zero = zero.clamp(0, grid.highest)
        # A zero point that is no code moves the values by whole steps.
        self._moved = zero - self._zero if bool((zero != self._zero).any()) else None
        self._first = torch.as_tensor(np.asarray(grid.scale, np.float32).reshape(shape), device=device)
        self._low, self._high = (torch.tensor(float(end), device=device) for end in (0, grid.highest))
        self.share = torch.ones_like(self._first).requires_grad_()

    def __call__(self, x: Tensor) -> Tensor:
        step = self._first * self.share
        if self._moved is None:
            return lsq(x, step, self._low, self._high, self._zero)
        offset = self._moved * step
        return lsq(x + offset, step, self._low, self._high, self._zero) - offset

    def settled(self) -> UniformGrid | HeadGrid:
        scale = _settled_scale(np.asarray(self.grid.scale, np.float32), self.share)
        if isinstance(self.grid, HeadGrid):
            return HeadGrid(scale, self.grid.zero_point, self.grid.bits, self.grid.round_first)
        return replace(self.grid, scale=float(scale))


class _LearnedLog:
    def __init__(self, grid: LogGrid, device: torch.device) -> None:
        self.grid = grid
        self._depth = GELU_DEPTH if isinstance(grid, ShiftAdaLogGrid | ShiftLogSqrt2Grid) else 0.0
        exponent = grid.q / BASE_DENOMINATOR if isinstance(grid, AdaLogGrid | ShiftAdaLogGrid) else 0.5
        rising = log_boundaries(grid.bits, exponent, 1.0)[::-1].astype(np.float32)
        self._rising = torch.from_numpy(rising).to(device)
        # What each code stands for at scale 1, the zero symbol last.
        codes = torch.arange((1 << grid.bits) + 1)
        self._entries = ((grid.values(codes) + self._depth) / grid.scale).to(device)
        self.share = torch.ones((), device=device, requires_grad=True)

    def __call__(self, x: Tensor) -> Tensor:
        scale = self.grid.scale * self.share
        shifted = x + self._depth
        with torch.no_grad():
            codes = len(self._rising) - torch.bucketize(shifted / scale, self._rising)
            values = self._entries[codes] * scale
            above = shifted > scale
            # 0 of the zero symbol; above the scale the code is 0 whatever the value.
            slope = torch.where(above, 0, values / shifted.clamp(min=torch.finfo(shifted.dtype).tiny))
        passed = slope * (shifted - shifted.detach()) + above * (scale - scale.detach())
        return values + passed - self._depth

    def settled(self) -> LogGrid:
        return replace(self.grid, scale=float(_settled_scale(np.asarray(self.grid.scale, np.float32), self.share)))
