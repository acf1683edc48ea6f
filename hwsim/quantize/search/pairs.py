"""Operands of a matrix product whose quantizers have two parameters, and what they are as functions of these."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from golden.adalog import BASE_DENOMINATOR, adalog_tables
from hwsim.quantize.quantizers.adalog import SEARCHED_Q
from hwsim.quantize.quantizers.log_sqrt2 import ShiftLogSqrt2Grid
from hwsim.quantize.quantizers.logarithm import GELU_DEPTH
from hwsim.quantize.quantizers.protocol import Grid
from hwsim.quantize.quantizers.shift_adalog import ShiftAdaLogGrid
from hwsim.quantize.quantizers.uniform import FLOAT32_EPS, HeadGrid, UniformGrid
from hwsim.quantize.search.output_error import OutputError, Quantize, some_rows
from hwsim.quantize.search.progressive import Best, Cost, Space, alternating, brute_force, progressive
from hwsim.quantize.search.settings import PROGRESSIVE, PairSearch

# Quantiles between which the finest steps just lie, as released.
INNER = 0.1
# Pairs of q that a search of shifted codes begins with, as released.
FIRST_Q = 8


class Operand(Protocol):
    """One operand during the search.

    Attributes
    ----------
    rows : Tensor [images, heads, rows, elements]
        Float values; the product contracts the elements of both operands.
    tried : int
        Candidates tried so far, in a group.
    """

    rows: Tensor
    tried: int

    @property
    def choice(self) -> tuple[float, ...]:
        """What was chosen so far, to see whether it changed."""
        ...

    def quantized(self) -> Tensor:
        """All rows as chosen so far."""
        ...

    def search(self, other: Operand | None) -> None:
        """Choose by the error of the product with the other operand, or by the operand's own error."""
        ...


def output_error(operand: Operand, other: Operand | None, group: str, limit: int) -> tuple[OutputError, Tensor]:
    """The cost of an operand's candidates and the rows that it sees, see `some_rows`."""
    rows = operand.rows
    if limit:
        rows = rows[:, :, some_rows(rows, limit)]
    if other is None:
        return OutputError(rows, group), rows
    theirs = other.quantized()
    return OutputError(rows, group, theirs.mT, rows @ (theirs - other.rows).mT), rows


class FloatOperand:
    """An operand that stays in float."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.tried = 0
        self.choice: tuple[float, ...] = ()

    def quantized(self) -> Tensor:
        return self.rows

    def search(self, other: Operand | None) -> None:
        pass


class GridOperand:
    """An operand with a list of grids to choose from.

    Parameters
    ----------
    rows : Tensor
    grids : list of Grid
    limit : int
        Values that candidates are judged by, see `PairSearch.values`.
    """

    def __init__(self, rows: Tensor, grids: list[Grid], limit: int) -> None:
        self.rows = rows
        self.grids = grids
        self.limit = limit
        self.grid = grids[0]
        self.tried = 0

    @property
    def choice(self) -> tuple[float, ...]:
        return (float(self.grids.index(self.grid)),)

    def quantized(self) -> Tensor:
        return self.grid.values(self.grid.codes(self.rows))

    def search(self, other: Operand | None) -> None:
        if len(self.grids) == 1:
            return
        error, rows = output_error(self, other, "tensor", self.limit)
        costs = [float(error(grid.values(grid.codes(rows)))) for grid in self.grids]
        self.tried += len(costs)
        self.grid = self.grids[costs.index(min(costs))]


class UniformOperand:
    """An operand on uniform grids: the pairs are a step and a zero point.

    Parameters
    ----------
    rows : Tensor
    bits : int
    group : {"tensor", "head", "row", "element"}
        What has a grid of its own; weights have one a row.
    search : PairSearch
    zero_points : int
        Zero points that FPCS begins with.
    limit : int
        Values that candidates are judged by; 0 takes all.
    """

    def __init__(
        self, rows: Tensor, bits: int, group: str, search: PairSearch, *, zero_points: int, limit: int = 0
    ) -> None:
        self.rows = rows
        self.bits = bits
        self.group = group
        self.limit = limit
        self.tried = 0
        self._settings = search
        self._levels = (1 << bits) - 1
        self._place = OutputError(rows, group)
        values = _by_group(rows, group)
        low, high = values.amin(dim=1).clamp(max=0), values.amax(dim=1).clamp(min=0)
        inner = _quantile(values, 1 - INNER) - _quantile(values, INNER)
        widest = ((high - low) / self._levels).clamp(min=FLOAT32_EPS)
        narrowest = (inner / self._levels).clamp(min=FLOAT32_EPS)
        self.space = Space(torch.minimum(narrowest, widest), widest, self._zero_points(zero_points), 0, self._levels)
        self.scale = widest
        self.zero_point = (-low / widest).round()

    def _zero_points(self, count: int) -> tuple[int, ...]:
        """As released, neighbours of the middle; as the paper, evenly spread over all."""
        count = min(count, self._levels + 1)
        if self._settings.method == "released":
            first = (self._levels + 1) // 2 - count // 2
            return tuple(range(first, first + count))
        return tuple(int(z) for z in np.unique(np.linspace(0, self._levels, count).round()))

    def _quantize(self, rows: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        codes = (rows / scale).round_()
        return codes.clamp_(-zero_point, self._levels - zero_point).mul_(scale)

    @property
    def choice(self) -> tuple[float, ...]:
        return (*self.scale.tolist(), *self.zero_point.tolist())

    def quantized(self) -> Tensor:
        at = self._place.parameter
        return self._quantize(self.rows, at(self.scale), at(self.zero_point))

    def search(self, other: Operand | None) -> None:
        error, rows = output_error(self, other, self.group, self.limit)

        def quantize(scale: Tensor, zero_point: Tensor) -> Tensor:
            return self._quantize(rows, scale, zero_point)

        best = best_pair(
            lambda first, second: error.costs(quantize, first, second), self.space, self._settings, self.zero_point
        )
        self.tried += best.tried
        self.scale, self.zero_point = best.first, best.second

    def grid(self) -> UniformGrid | HeadGrid:
        """The grid that was chosen, its codes rounded as the search did."""
        scale, zero_point = self.scale.cpu().numpy(), self.zero_point.cpu().numpy().astype(np.int64)
        if self.group == "head":
            return HeadGrid(scale, zero_point, self.bits, round_first=True)
        return UniformGrid(float(scale[0]), int(zero_point[0]), self.bits, round_first=True)


class ShiftedLogOperand:
    """GELU outputs on shifted logarithmic codes: the pairs are a scale and the q of the base.

    Parameters
    ----------
    rows : Tensor
    grid : ShiftAdaLogGrid or ShiftLogSqrt2Grid
        The first choice.
    q : int
        The one of the base, 0 to search it.
    search : PairSearch
    """

    def __init__(self, rows: Tensor, grid: ShiftAdaLogGrid | ShiftLogSqrt2Grid, q: int, search: PairSearch) -> None:
        self.rows = rows
        self.grid = grid
        self.tried = 0
        self._settings = search
        self._q = q
        positive = rows[rows > 0]
        high = rows.new_full((1,), grid.scale)
        low = high if not len(positive) else _quantile(positive[None], 1 - INNER) + GELU_DEPTH
        self._range = torch.minimum(low, high), high

    @property
    def choice(self) -> tuple[float, ...]:
        return self.grid.scale, float(getattr(self.grid, "q", 0))

    def quantized(self) -> Tensor:
        return self.grid.values(self.grid.codes(self.rows))

    def _quantizer(self, rows: Tensor) -> Quantize:
        octaves = (rows + GELU_DEPTH).clamp_(min=1e-15).log2_()
        bits, sqrt2 = self.grid.bits, isinstance(self.grid, ShiftLogSqrt2Grid)
        tables = torch.stack([_decoded(bits, q) for q in ((None,) if sqrt2 else SEARCHED_Q)]).to(rows.device)

        def quantize_each(scale: Tensor, q: Tensor) -> Tensor:
            """With a scale and a q for each of n times the rows."""
            steps = 2.0 if sqrt2 else BASE_DENOMINATOR / q
            codes = ((scale.log2() - octaves) * steps).round_().clamp_(0, 1 << bits).long()
            chosen = tables[(q.reshape(-1).long() - SEARCHED_Q[0]).clamp(0, len(tables) - 1)]
            entries = chosen * scale.reshape(-1, 1) - GELU_DEPTH
            return entries.gather(1, codes.flatten(1)).view(codes.shape)

        def quantize(scale: Tensor, q: Tensor) -> Tensor:
            if scale.ndim > rows.ndim:
                return quantize_each(scale, q)
            exponent = 0.5 if sqrt2 else float(q) / BASE_DENOMINATOR
            codes = ((scale.log2() - octaves) * (1 / exponent)).round_().clamp_(0, 1 << bits).int()
            entries = _decoded(bits, None if sqrt2 else int(q)).to(rows.device) * scale.reshape(()) - GELU_DEPTH
            return entries.index_select(0, codes.flatten()).view(rows.shape)

        return quantize

    def search(self, other: Operand | None) -> None:
        error, rows = output_error(self, other, "tensor", self._settings.values)
        quantize = self._quantizer(rows)

        def cost(scale: Tensor, q: Tensor) -> Tensor:
            return error.costs(quantize, scale, q)

        coarse: tuple[int, ...] = (self._q or BASE_DENOMINATOR,)
        low, high = self._range
        fixed = bool(self._q) or isinstance(self.grid, ShiftLogSqrt2Grid)
        if not fixed and self._settings.method in PROGRESSIVE:
            # The first beam; the other methods have pairs of their own.
            seconds = torch.tensor(SEARCHED_Q, dtype=rows.dtype, device=rows.device)[:, None]
            found = cost(high.expand(len(seconds), 1), seconds)
            self.tried += len(seconds)
            best = found[:, 0].topk(FIRST_Q, largest=False).indices
            coarse = tuple(sorted(int(q) for q in seconds[best, 0]))
        least, most = (coarse[0], coarse[0]) if fixed else (SEARCHED_Q[0], SEARCHED_Q[-1])
        start = high.new_full((1,), float(getattr(self.grid, "q", coarse[0])))
        pair = best_pair(cost, Space(low, high, coarse, least, most), self._settings, start, gelu=True)
        self.tried += pair.tried
        scale, q = float(pair.first), int(pair.second)
        if isinstance(self.grid, ShiftLogSqrt2Grid):
            self.grid = ShiftLogSqrt2Grid(self.grid.bits, scale)
        else:
            self.grid = ShiftAdaLogGrid(self.grid.bits, q, scale)


def best_pair(cost: Cost, space: Space, search: PairSearch, start: Tensor, *, gelu: bool = False) -> Best:
    """The search that the settings name."""
    if search.method == "alternating":
        return alternating(cost, space, candidates=search.candidates, rounds=search.rounds, start=start)
    if search.method == "brute-force":
        return brute_force(cost, space, candidates=search.candidates)
    return progressive(
        cost,
        space,
        candidates=search.candidates,
        steps=search.steps,
        beam=search.gelu_beam if gelu else search.beam,
        refine_second=search.method == "fpcs" and space.most > space.least,
    )


@lru_cache(maxsize=512)
def _decoded(bits: int, q: int | None) -> Tensor:
    """What each code stands for at scale 1, the zero symbol last; without q of base sqrt(2)."""
    if q is None:
        entries = np.exp2(-np.arange(1 << bits) / 2)
    else:
        shift, mantissa = adalog_tables(bits, q)
        entries = np.exp2(-shift.astype(np.float64)) * mantissa / ((2 << bits) - 2)
    return torch.from_numpy(np.append(entries, 0.0).astype(np.float32))


def _by_group(rows: Tensor, group: str) -> Tensor:
    """Values of each group, [groups, values]."""
    axis = {"tensor": None, "head": 1, "row": 2, "element": 3}[group]
    return rows.reshape(1, -1) if axis is None else rows.movedim(axis, 0).flatten(1)


def _quantile(values: Tensor, share: float) -> Tensor:
    """The value [groups] below which a share of each group [groups, values] lies; no interpolation."""
    count = values.shape[1]
    return values.kthvalue(max(1, min(count, round(share * count))), dim=1).values
