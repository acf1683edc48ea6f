"""Alternating search of the candidates of both operands of one matrix product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hwsim.quantize.quantizers.twin import ReleasedTwinSoftmaxGrid, TwinSoftmaxGrid
from hwsim.quantize.search.candidates import Activation, Choice, Operand, Weight
from hwsim.quantize.search.settings import ScaleSearch

# Values of the output at once: on a processor they stay in its second-level cache, on a GPU they fill it.
VALUES_AT_ONCE = {"cpu": 1 << 17}
VALUES_ON_ACCELERATOR = 1 << 26


@dataclass
class Product:
    """A matrix product whose operands are searched: a linear layer, or queries with keys, or attention with values.

    Parameters
    ----------
    operands : tuple of Operand
        In the order of their turns: weights and input, or first and second operand.
    multiply : callable
        (quantized first operand, quantized second operand) -> output; of an image or several.
    output, gradient : Tensor
        Of the float layer, on the same inputs; ``[N, tokens, features]``, or ``[N, heads, tokens, features]``.
    """

    operands: tuple[Operand, Operand]
    multiply: Callable[[Tensor, Tensor], Tensor]
    output: Tensor
    gradient: Tensor | None

    def costs(self, turn: int, metric: str, *, other_in_float: bool = False) -> np.ndarray:
        """Distance of the output from the float layer's with each candidate, float64 [candidates, groups].

        Parameters
        ----------
        turn : {0, 1}
            The operand whose candidates are tried.
        metric : str
        other_in_float : bool
            Do not quantize the other operand meanwhile.
        """
        operand, fixed = self.operands[turn], self.operands[1 - turn]
        other = fixed.values if other_in_float and isinstance(fixed, Activation) else fixed.current()
        whole_weight = isinstance(fixed, Weight)
        costs = torch.zeros(operand.count, operand.groups, dtype=torch.float64, device=self.output.device)
        for index in range(operand.count):
            weight = operand.candidate(index, slice(0)) if isinstance(operand, Weight) else None
            for part in self._parts():
                mine = operand.candidate(index, part) if weight is None else weight
                theirs = other if whole_weight else other[part]
                output = self.multiply(*((mine, theirs) if turn == 0 else (theirs, mine)))
                gradient = None if self.gradient is None else self.gradient[part]
                costs[index] += _distance(metric, self.output[part], output, gradient, operand.groups)
        return costs.cpu().numpy()

    def _parts(self) -> list[slice]:
        limit = VALUES_AT_ONCE.get(self.output.device.type, VALUES_ON_ACCELERATOR)
        images = max(1, limit // max(1, self.output[0].numel()))
        return [slice(start, start + images) for start in range(0, len(self.output), images)]


def _distance(metric: str, expected: Tensor, output: Tensor, gradient: Tensor | None, groups: int) -> Tensor:
    """Distance, to be made small, in each group: float64 [groups]."""
    if metric == "cosine":
        return _cosine_distance(expected, output, groups)
    error = expected - output
    if gradient is not None and metric == "hessian":
        error *= gradient
    error.square_()
    if error.ndim == 4:  # heads
        total = error.sum(dim=(0, 2, 3), dtype=torch.float64)
        return total if groups > 1 else total.sum()[None]
    return error.sum(dim=(0, 1)).double().view(groups, -1).sum(dim=1)


def _cosine_distance(expected: Tensor, output: Tensor, groups: int) -> Tensor:
    """Minus the mean cosine of a token's features, summed over the images."""
    if expected.ndim == 4:
        total = functional.cosine_similarity(expected, output, dim=-1).mean(dim=2).sum(dim=0).double()
        return -(total if groups > 1 else total.sum()[None])
    features = expected.shape[-1] // groups
    if features == 1:
        # One feature has no direction; its tokens have.
        return -functional.cosine_similarity(expected, output, dim=1).sum(dim=0).double()
    mine, theirs = (x.unflatten(-1, (groups, features)) for x in (expected, output))
    return -functional.cosine_similarity(mine, theirs, dim=-1).mean(dim=1).sum(dim=0).double()


def alternate(product: Product, search: ScaleSearch) -> None:
    """Let the operands choose in turn, `search.rounds` times; of the best candidates the first is taken.

    A group that all candidates serve equally keeps its first value: nothing depends on it.

    A turn that finds the other operand as an earlier turn of its own did repeats that choice without a search:
    the result is the same, and the last rounds often cost nothing.
    """
    state: list[Choice | None] = [None, None]
    known: dict[tuple[int, Choice | None], Choice] = {}
    for _ in range(search.rounds):
        for turn, operand in enumerate(product.operands):
            if not operand.count:
                continue
            split = isinstance(operand, Activation) and isinstance(
                operand.grid, TwinSoftmaxGrid | ReleasedTwinSoftmaxGrid
            )
            key = turn, state[1 - turn]
            if key not in known:
                costs = product.costs(turn, search.metric, other_in_float=search.as_released and split)
                idle = costs.min(axis=0) == costs.max(axis=0)
                known[key] = tuple(
                    None if same else int(best) for same, best in zip(idle, costs.argmin(axis=0), strict=True)
                )
            if state[turn] != known[key]:
                operand.choose(known[key])
                state[turn] = known[key]
