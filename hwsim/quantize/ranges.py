"""Ranges of activations from calibration batches: the observers of FQ-ViT.

Source: FQ-ViT's released code; `golden.published.observers` is their definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from golden.errors import HwsimError, one_of
from golden.published.observers import OMSE_STEPS, PERCENTILE, SIGMA

# Of so many values the percentile leaves one out.
PERCENTILE_VALUES = round(1 / (1 - PERCENTILE))

# (low, high) of several ranges -> squared error of quantizing the last batch in each of them
RangeErrors = Callable[[Sequence[tuple[Tensor, Tensor]]], Tensor]


class Range(Protocol):
    """Running estimate of the range of one point."""

    def update(self, x: Tensor) -> None:
        """See one batch."""
        ...

    def settle(self, errors: RangeErrors) -> tuple[Tensor, Tensor]:
        """Low and high end; `errors` judges ranges on the last batch."""
        ...


class MinMax:
    """Minimum and maximum over all batches."""

    def __init__(self) -> None:
        self._range: tuple[Tensor, Tensor] | None = None

    def update(self, x: Tensor) -> None:
        low, high = self.ends(x)
        self._range = (low, high) if self._range is None else self.join(self._range, (low, high))

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.min(), x.max()

    def join(self, seen: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return torch.minimum(seen[0], new[0]), torch.maximum(seen[1], new[1])

    def settle(self, errors: RangeErrors) -> tuple[Tensor, Tensor]:
        if self._range is None:
            raise HwsimError("calibration saw no batch; give at least one image")
        return self._range


class MovingAverage(MinMax):
    """The first batch's minimum and maximum, moved 1 % of the way to those of each next batch."""

    def join(self, seen: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return seen[0] + SIGMA * (new[0] - seen[0]), seen[1] + SIGMA * (new[1] - seen[1])


class Percentile(MovingAverage):
    """Moving averages of the quantiles 0.00001 and 0.99999 of each batch.

    A batch of fewer than `PERCENTILE_VALUES` has no value outside them: then they are its
    minimum and maximum, nearly.

    Attributes
    ----------
    fewest : int or None
        Values of the smallest batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fewest: int | None = None

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.reshape(-1)
        self.fewest = min(flat.numel(), self.fewest or flat.numel())
        return -_upper_quantile(-flat), _upper_quantile(flat)


class LeastError(MinMax):
    """OMSE: of the minimum and maximum times 1, 0.99, ... 0.11 the range with the least error on the last batch."""

    def settle(self, errors: RangeErrors) -> tuple[Tensor, Tensor]:
        low, high = super().settle(errors)
        ranges = [(low * (1 - 0.01 * step), high * (1 - 0.01 * step)) for step in range(OMSE_STEPS)]
        # argmin takes the first of equal errors, as released.
        return ranges[int(errors(ranges).argmin())]


RANGES: dict[str, type[MinMax]] = {
    "minmax": MinMax,
    "ema": MovingAverage,
    "percentile": Percentile,
    "omse": LeastError,
}


def new_range(name: str) -> Range:
    """A range estimate by name."""
    return RANGES[name]()


def check_range(name: str) -> None:
    """Refuse an unknown name.

    Raises
    ------
    HwsimError
        Names the known ones.
    """
    if name not in RANGES:
        raise HwsimError(f"there is no range observer {name!r}; {one_of(name, RANGES)}")


def _upper_quantile(values: Tensor) -> Tensor:
    """The quantile `PERCENTILE` of values, linearly interpolated; only the largest few are sorted."""
    rank = PERCENTILE * (values.numel() - 1)
    below = math.floor(rank)
    largest = values.topk(values.numel() - below).values
    low = largest[-1].double()
    high = largest[-2].double() if rank > below else low
    return (low + (rank - below) * (high - low)).float()
