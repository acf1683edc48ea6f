"""Which layer loses what at which width, and mixed precision that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from golden.errors import HwsimError
from hwsim.explore.fronts import same_accuracy
from hwsim.explore.records import Record
from hwsim.explore.space import Point
from hwsim.networks.graph import FloatGraph


@dataclass(frozen=True)
class Layer:
    """A part of the network whose width is varied alone.

    Attributes
    ----------
    name : str
    weights : tuple of str
        Linear layers whose weights get the width.
    points : tuple of str
        Points that get it, all of them with uniform or power-of-two quantizers.
    """

    name: str
    weights: tuple[str, ...]
    points: tuple[str, ...]


def layers_of(graph: FloatGraph, by: str = "layer") -> list[Layer]:
    """Linear layers with the points that they read, or whole blocks.

    Parameters
    ----------
    by : {"layer", "block"}

    Raises
    ------
    HwsimError
        Another word.
    """
    if by not in ("layer", "block"):
        raise HwsimError(f"--by must be layer or block, not {by!r}")
    parts = []
    for node in graph.nodes:
        if node.operation == "linear":
            source = graph.source(node.inputs[0])
            points = (source.name,) if source.role not in ("", "input", "residual") else ()
            parts.append(Layer(node.name, (node.name,), points))
    if by == "layer":
        return parts
    blocks: dict[str, list[Layer]] = {}
    for part in parts:
        blocks.setdefault(_block(part.name), []).append(part)
    return [
        Layer(name, tuple(w for part in block for w in part.weights), tuple(p for part in block for p in part.points))
        for name, block in blocks.items()
    ]


def _block(name: str) -> str:
    """``blocks.3`` of ``blocks.3.attn.qkv``, ``layers.1.blocks.0`` of Swin's; other layers are on their own."""
    parts = name.split(".")
    last = max((i for i, part in enumerate(parts) if part.isdigit() and parts[i - 1] == "blocks"), default=None)
    return name if last is None else ".".join(parts[: last + 1])


def narrowed(base: Point, layer: Layer, bits: int) -> Point:
    """The base recipe with the layer's weights and points at a width."""
    return {
        **base,
        **{f"node_weights.{name}": bits for name in layer.weights},
        **{f"node.{name}": f"uniform:{bits}" for name in layer.points},
    }


@dataclass(frozen=True)
class Loss:
    """What a layer loses at a width.

    Attributes
    ----------
    layer : str
    bits : int
    lost : float
        Points of top-1 below the base.
    significant : bool
        By the exact McNemar test on the same images, 5 %.
    saved_bytes : float
        Constants of the base less those of this point.
    record : Record
    """

    layer: str
    bits: int
    lost: float
    significant: bool
    saved_bytes: float
    record: Record


def losses(base: Record, found: Mapping[tuple[str, int], Record]) -> list[Loss]:
    """What every layer loses at every width, against the base recipe; points without figures are left out."""
    result = []
    for (layer, bits), record in found.items():
        if record.error:
            continue
        result.append(
            Loss(
                layer,
                bits,
                base.top1 - record.top1,
                same_accuracy(base.bits, record.bits) < 0.05,
                float(base.costs.get("constant_bytes", np.nan)) - float(record.costs.get("constant_bytes", np.nan)),
                record,
            )
        )
    return result


def narrowings(found: Sequence[Loss]) -> list[dict[str, Loss]]:
    """Narrow one layer after the other, those first that save most for what they lose alone.

    Returns
    -------
    list of dict
        By layer the loss whose width it has, after no, one, two, ... steps; `with_widths` makes a point of one.
    """
    # What loses nothing measurable counts as losing nothing: noise must not pay for other layers.
    order = sorted(found, key=lambda loss: (max(loss.lost, 0.0) / max(loss.saved_bytes, 1e-9), -loss.saved_bytes))
    steps: list[dict[str, Loss]] = [{}]
    for loss in order:
        chosen = steps[-1]
        if loss.saved_bytes > (chosen[loss.layer].saved_bytes if loss.layer in chosen else 0.0):
            steps.append({**chosen, loss.layer: loss})
    return steps


def with_widths(base: Point, layers: Sequence[Layer], chosen: Mapping[str, Loss]) -> Point:
    """The base with every chosen layer at its width."""
    point = dict(base)
    for layer in layers:
        if layer.name in chosen:
            point = dict(narrowed(point, layer, chosen[layer.name].bits))
    return point


def most_within(steps: Sequence[Mapping[str, Loss]], budget: float, lost: Callable[[Mapping[str, Loss]], float]) -> int:
    """How many steps a budget pays for, by bisection.

    Losses of single layers need not add up, so that each try is measured.

    Parameters
    ----------
    steps : sequence of dict
        Of `narrowings`; the first, the base, is taken to be within the budget.
    budget : float
        Points of top-1.
    lost : callable
        Measures how many points a step loses against the base.
    """
    low, high = 0, len(steps)
    while high - low > 1:
        middle = (low + high) // 2
        if lost(steps[middle]) <= budget:
            low = middle
        else:
            high = middle
    return low
