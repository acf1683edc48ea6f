"""Fast progressive combining search (FPCS: Wu et al., ECCV 2024), and the searches that it is compared with.

All search two parameters of a quantizer at once, for many groups (output channels, heads, or one) side by side: a
step of the uniform grid and its zero point, or the scale of logarithmic codes and the base of the logarithm. They
see the quantizer as a cost of pairs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

# (first parameter [n, groups], second [n, groups]) -> cost, float64 [n, groups]
Cost = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Space:
    """Where the pairs lie.

    Parameters
    ----------
    low, high : Tensor [groups]
        Range of the first parameter, above 0.
    coarse : tuple of int
        Values of the second parameter that a search begins with, rising.
    least, most : int
        Range of the second parameter.
    """

    low: Tensor
    high: Tensor
    coarse: tuple[int, ...]
    least: int
    most: int

    def firsts(self, count: int) -> Tensor:
        """Evenly spread values of the first parameter, [count, groups]."""
        share = torch.linspace(0, 1, count, device=self.low.device)[:, None] if count > 1 else self.low.new_ones(1, 1)
        return self.low + share * (self.high - self.low)

    def clip(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs moved into the space; the first parameter may leave its range, but stays above 0."""
        return torch.maximum(first, self.low / 64), second.clamp(self.least, self.most)


@dataclass
class Best:
    """The best pair of every group so far; of equals the first.

    Attributes
    ----------
    first, second : Tensor [groups]
    cost : Tensor of float64 [groups]
    tried : int
        Pairs tried in a group.
    """

    first: Tensor
    second: Tensor
    cost: Tensor
    tried: int = field(default=0)

    @classmethod
    def none(cls, space: Space) -> Best:
        """Before anything was tried."""
        cost = torch.full_like(space.low, math.inf, dtype=torch.float64)
        return cls(space.low.clone(), torch.zeros_like(space.low), cost)

    def offer(self, first: Tensor, second: Tensor, cost: Tensor) -> None:
        """See pairs [n, groups]."""
        self.tried += len(first)
        least, index = cost.min(dim=0)
        better = least < self.cost
        take = index[None]
        self.first = torch.where(better, first.gather(0, take)[0], self.first)
        self.second = torch.where(better, second.gather(0, take)[0], self.second)
        self.cost = torch.where(better, least, self.cost)


def _pairs(first: Tensor, seconds: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """All combinations of firsts [n, groups] and seconds: [n * len(seconds), groups] each."""
    second = torch.tensor(seconds, dtype=first.dtype, device=first.device)[:, None].expand(-1, first.shape[1])
    return first.repeat(len(seconds), 1), second.repeat_interleave(len(first), dim=0)


def progressive(cost: Cost, space: Space, *, candidates: int, steps: int, beam: int, refine_second: bool) -> Best:
    """Keep the best `beam` pairs and look closer around them, `steps` times.

    Parameters
    ----------
    cost : callable
    space : Space
    candidates : int
        Pairs a step, n of the paper.
    steps : int
        p of the paper.
    beam : int
        k of the paper.
    refine_second : bool
        Refine both parameters, as the paper says: the children of a pair are itself and its neighbours on a grid
        of both, and `LEAST_CHILDREN` or more of a step's candidates are there for each. Otherwise the first one alone,
        as the released code does.
    """
    best = Best.none(space)
    count = max(1, candidates // len(space.coarse))
    first, second = _pairs(space.firsts(count), space.coarse)
    width = (space.high - space.low) / max(count - 1, 1)
    reach = max(1, math.ceil((space.coarse[-1] - space.coarse[0]) / max(len(space.coarse) - 1, 1) / 2))
    for step in range(steps):
        first, second = space.clip(first, second)
        found = cost(first, second)
        best.offer(first, second, found)
        if step == steps - 1:
            break
        survivors = found.topk(min(beam, len(found)), dim=0, largest=False, sorted=True).indices
        first, second = first.gather(0, survivors), second.gather(0, survivors)
        children = max(2, candidates // len(first))
        offsets = _offsets(children, reach if refine_second else 0)
        first = torch.cat([first + width * of_first for of_first, _ in offsets])
        second = torch.cat([second + of_second for _, of_second in offsets])
        distinct = len({of_first for of_first, _ in offsets})
        width, reach = width / (distinct - 0.5), max(1, reach // 2)
    return best


def _offsets(children: int, reach: int) -> list[tuple[float, int]]:
    """Children of a pair: shares of the width of the first parameter, and distances of the second.

    With a reach there are at least `LEAST_CHILDREN`.
    """
    seconds = (0, -reach, reach) if reach else (0,)
    count = max(2, children // len(seconds))
    if reach:
        count -= 1 - count % 2  # odd, so that the pair is its own child
    firsts = [index / (count - 1) - 0.5 for index in range(count)]
    return [(of_first, of_second) for of_second in seconds for of_first in firsts]


def alternating(cost: Cost, space: Space, *, candidates: int, rounds: int, start: Tensor) -> Best:
    """The best first parameter for the second at hand, then the best second for the first, `rounds` times.

    Parameters
    ----------
    cost, space
        As in `progressive`.
    candidates : int
        Values of each parameter.
    rounds : int
    start : Tensor [groups]
        The second parameter of the first turn.
    """
    best = Best.none(space)
    firsts = space.firsts(candidates)
    seconds = _spread(space, candidates).to(firsts)[:, None].expand(-1, firsts.shape[1])
    second = start
    for _ in range(rounds):
        # The cost of a turn decides anew: the other parameter may have changed.
        turn = Best.none(space)
        turn.offer(firsts, second.expand_as(firsts).contiguous(), cost(firsts, second.expand_as(firsts)))
        first = turn.first
        turn.offer(first.expand_as(seconds), seconds, cost(first.expand_as(seconds), seconds))
        second = turn.second
        turn.tried += best.tried
        best = turn
    return best


def brute_force(cost: Cost, space: Space, *, candidates: int) -> Best:
    """Every combination of `candidates` values of either parameter, or of all that the second one has."""
    best = Best.none(space)
    firsts = space.firsts(candidates)
    for second in _spread(space, candidates).tolist():
        column = torch.full_like(firsts, float(second))
        best.offer(firsts, column, cost(firsts, column))
    return best


def _spread(space: Space, count: int) -> Tensor:
    """At most `count` evenly spread values of the second parameter."""
    whole = space.most - space.least + 1
    if whole <= count:
        return torch.arange(space.least, space.most + 1)
    return torch.linspace(space.least, space.most, count).round().unique()
