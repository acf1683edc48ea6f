"""Candidates of one operand: the grids or weights among which the search chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hwsim.quantize.quantizers.protocol import Grid, Quantizer
from hwsim.quantize.quantizers.twin import (
    SOFTMAX_SHIFTS,
    ReleasedTwinSoftmaxGrid,
    TwinGelu,
    TwinGeluGrid,
    TwinSoftmaxGrid,
)
from hwsim.quantize.quantizers.uniform import HeadGrid, UniformGrid
from hwsim.quantize.weights import QuantizedWeight, SymmetricWeights

# The candidate of each group; None keeps the first value.
Choice = tuple[int | None, ...]


class Operand(Protocol):
    """One operand of a matrix product during the search.

    Attributes
    ----------
    count : int
        Candidates.
    groups : int
        Parts of the output whose candidates are chosen apart: heads or groups of weights.
    """

    groups: int

    @property
    def count(self) -> int: ...

    def candidate(self, index: int, part: slice) -> Tensor:
        """Fake-quantized values with one candidate everywhere, of some images."""
        ...

    def current(self) -> Tensor:
        """Fake-quantized values as chosen so far, of all images."""
        ...

    def choose(self, best: Choice) -> None:
        """Take a candidate for each group; None keeps the first value."""
        ...


def grid_candidates(grid: Grid, quantizer: Quantizer, factors: Sequence[float]) -> list[Grid]:
    """Grids among which the search chooses; empty for a quantizer that it leaves alone.

    Uniform steps shrink and grow around the zero point. A twin softmax tries every ratio of its
    steps, a twin GELU its positive step: free multiples, or the octaves that these fall into.
    """
    if isinstance(grid, UniformGrid):
        return [replace(grid, scale=float(np.float32(grid.scale * factor))) for factor in factors]
    if isinstance(grid, HeadGrid):
        return [HeadGrid((grid.scale * factor).astype(np.float32), grid.zero_point, grid.bits) for factor in factors]
    if isinstance(grid, TwinSoftmaxGrid | ReleasedTwinSoftmaxGrid):
        return [replace(grid, shift=shift) for shift in SOFTMAX_SHIFTS]
    if isinstance(grid, TwinGeluGrid):
        assert isinstance(quantizer, TwinGelu)
        # Octaves repeat; a dict keeps the first of equals in its place.
        return list(dict.fromkeys(quantizer.grid(grid.positive * factor) for factor in factors))
    return []


class Activation:
    """An activation as an operand.

    Parameters
    ----------
    values : Tensor
        Float values of all images, the image on the first axis; of a matrix product ``[N, heads, rows, columns]``.
    grid : Grid or None
        The first choice; None leaves the operand in float.
    candidates : list of Grid
    """

    def __init__(self, values: Tensor, grid: Grid | None, candidates: list[Grid]) -> None:
        self.values = values
        self.grid = grid
        self.candidates = candidates
        self._first = grid
        self.groups = len(grid.scale) if isinstance(grid, HeadGrid) else 1

    @property
    def count(self) -> int:
        return len(self.candidates)

    def candidate(self, index: int, part: slice) -> Tensor:
        grid = self.candidates[index]
        return grid.values(grid.codes(self.values[part]))

    def current(self) -> Tensor:
        return self.values if self.grid is None else self.grid.values(self.grid.codes(self.values))

    def choose(self, best: Choice) -> None:
        chosen = [self._first if index is None else self.candidates[index] for index in best]
        if isinstance(chosen[0], HeadGrid):
            scale = np.array([grid.scale[head] for head, grid in enumerate(chosen) if isinstance(grid, HeadGrid)])
            self.grid = HeadGrid(scale, chosen[0].zero_point, chosen[0].bits)
        else:
            (self.grid,) = chosen


class Weight:
    """Weights of a linear layer as an operand.

    Parameters
    ----------
    weight : ndarray of float32 [outputs, inputs]
    quantizer : SymmetricWeights
    factors : sequence of float
    device : torch.device
    """

    def __init__(
        self, weight: np.ndarray, quantizer: SymmetricWeights, factors: Sequence[float], device: torch.device
    ) -> None:
        self.quantizer = quantizer
        self.largest = quantizer.largest_scale(weight)
        self.factors = factors
        self.quantized: QuantizedWeight = quantizer.quantize(weight)
        self.groups = len(self.largest)
        self.count = len(self.factors)
        self._float = weight
        self._tensor = torch.from_numpy(weight).to(device)
        self._limit = 1 << (quantizer.bits - 1)

    def candidate(self, index: int, part: slice) -> Tensor:
        scale = torch.from_numpy(self._scale((index,) * self.groups)).to(self._tensor.device)
        rows = scale.repeat_interleave(len(self._tensor) // self.groups)[:, None]
        return (self._tensor / rows).round().clamp(-self._limit, self._limit - 1) * rows

    def current(self) -> Tensor:
        return torch.from_numpy(self.quantized.values()).to(self._tensor.device)

    def choose(self, best: Choice) -> None:
        self.quantized = self.quantizer.quantize(self._float, self._scale(best))

    def _scale(self, best: Choice) -> np.ndarray:
        factors = [1.0 if index is None else self.factors[index] for index in best]
        scale: np.ndarray = (self.largest * np.array(factors)).astype(np.float32)
        return scale
