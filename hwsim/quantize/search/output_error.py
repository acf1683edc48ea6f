"""Squared error of a matrix product as one operand is quantized, without computing the product for each candidate.

With rows x of an operand, what they are multiplied by, F, and an error E that is there already (the other operand is
quantized too), the error of quantized rows x' is ``|(x' - x) F + E|^2``. Where F has more columns than a row has
elements, it is expanded: ``d H d + 2 d p`` with d = x' - x, ``H = F F^T`` and ``p = E F^T``, up to a constant.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Quantized rows of one candidate as a function of its two parameters, which are broadcast against the rows.
Quantize = Callable[[Tensor, Tensor], Tensor]

# Axes of the rows [images, heads, rows, elements] over which a group extends, by what has a group of its own.
_GROUP_AXES = {"tensor": (-4, -3, -2, -1), "head": (-4, -2, -1), "row": (-4, -3, -1), "element": (-4, -3, -2)}
# Values of candidates at once on an accelerator, which starts a kernel no faster than it works through a million of
# them. A processor takes one candidate at a time, which stays in its caches.
VALUES_ON_ACCELERATOR = 1 << 24
_PLACES = {"tensor": (1, 1, 1), "head": (-1, 1, 1), "row": (1, -1, 1), "element": (1, 1, -1)}


class OutputError:
    """Cost of candidates for one operand.

    Parameters
    ----------
    rows : Tensor [images, heads, rows, elements]
        Float values of the operand.
    group : {"tensor", "head", "row", "element"}
        What has parameters of its own.
    factor : Tensor [images or 1, heads, elements, columns], optional
        Without, the error of the operand itself counts.
    residual : Tensor [images, heads, rows, columns], optional
        E; nothing without.
    """

    def __init__(self, rows: Tensor, group: str, factor: Tensor | None = None, residual: Tensor | None = None) -> None:
        self.rows = rows
        self.group = group
        self._sum_axes = _GROUP_AXES[group]
        self._place = _PLACES[group]
        self._factor, self._residual = factor, residual
        self._hessian: Tensor | None = None
        self._slope: Tensor | None = None
        if factor is not None and factor.shape[-1] >= factor.shape[-2]:
            # A small constant error of H moves all costs alike; single precision is enough for the differences.
            self._hessian = factor @ factor.mT
            if residual is not None:
                self._slope = 2 * (residual @ factor.mT)

    def parameter(self, value: Tensor) -> Tensor:
        """One parameter a group, [groups] or [n, groups], broadcast against the rows or n times the rows."""
        return value.view(*value.shape[:-1], 1, *self._place)

    def __call__(self, quantized: Tensor) -> Tensor:
        """Cost of quantized rows, float64 [groups], or of n times the rows, [n, groups]; up to a constant a group."""
        difference = quantized - self.rows
        if self._factor is None:
            error = difference.square_()
        elif self._hessian is not None:
            error = difference @ self._hessian
            if self._slope is not None:
                error += self._slope
            error *= difference
        else:
            error = difference @ self._factor
            if self._residual is not None:
                error += self._residual
            error.square_()
        return self._reduce(error)

    def _reduce(self, error: Tensor) -> Tensor:
        # Single precision within a row of elements, double beyond.
        partial = error.sum(dim=-1, keepdim=True) if self.group != "element" else error
        return partial.double().sum(dim=self._sum_axes).reshape(*error.shape[:-4], -1)

    def costs(self, quantize: Quantize, first: Tensor, second: Tensor) -> Tensor:
        """Costs of pairs of parameters [n, groups], float64 [n, groups]."""
        if self.rows.device.type == "cpu":
            found = [
                self(quantize(self.parameter(one), self.parameter(other)))
                for one, other in zip(first, second, strict=True)
            ]
            return torch.stack(found)
        at_once = max(1, VALUES_ON_ACCELERATOR // self.rows.numel())
        return torch.cat(
            [
                self(quantize(self.parameter(some), self.parameter(others)))
                for some, others in zip(first.split(at_once), second.split(at_once), strict=True)
            ]
        )


def some_rows(rows: Tensor, limit: int) -> Tensor:
    """Indices of evenly spread rows with at most so many values in all, one at least; 0 is no limit."""
    images, heads, count, elements = rows.shape
    wanted = count if not limit else min(count, max(1, limit // (images * heads * elements)))
    return torch.arange(wanted, device=rows.device) * count // wanted
