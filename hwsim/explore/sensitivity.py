"""Which layer loses what at which width, and mixed precision that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from golden.errors import HwsimError
from hwsim.explore.fronts import same_accuracy
from hwsim.explore.records import Record
from hwsim.explore.space import Point
from hwsim.networks.graph import MOVEMENTS, FloatGraph, FloatNode
from hwsim.quantize.quantizers import quantizer_text
from hwsim.quantize.quantizers.protocol import Quantizer
from hwsim.quantize.recipe import Recipe

# Operands of these are codes: what `layers_of` varies by operand.
_READERS = ("matmul", "softmax")


@dataclass(frozen=True)
class Layer:
    """A part of the network whose width is varied alone.

    Attributes
    ----------
    name : str
    weights : tuple of str
        Linear layers whose weights get the width.
    points : mapping of str to Quantizer
        Points that get it, with the quantizers of the base; of these the width alone is changed.
    """

    name: str
    weights: tuple[str, ...]
    points: Mapping[str, Quantizer]


def layers_of(graph: FloatGraph, recipe: Recipe, by: str = "layer") -> list[Layer]:
    """Linear layers with the points that they read, whole blocks of them, or operands of the attention.

    Parameters
    ----------
    graph : FloatGraph
    recipe : Recipe
        The base. Points that it leaves in float stay in float.
    by : {"layer", "block", "operand"}
        An operand is a point that matrix products or softmax read: the projection with queries, keys and values, which
        have one width, scores and attention. It has no weights.

    Raises
    ------
    HwsimError
        Another word.
    """
    if by not in ("layer", "block", "operand"):
        raise HwsimError(f"--by must be layer, block or operand, not {by!r}")
    if by == "operand":
        operands: dict[str, dict[str, Quantizer]] = {}
        for read in [name for node in graph.nodes if node.operation in _READERS for name in node.inputs]:
            operands.setdefault(graph.source(read).name, {}).update(_point(graph, recipe, read))
        return [Layer(name, (), points) for name, points in operands.items() if points]
    parts = [
        Layer(node.name, (node.name,), _point(graph, recipe, node.inputs[0]))
        for node in graph.nodes
        if node.operation == "linear"
    ]
    if by == "layer":
        return parts
    blocks: dict[str, list[Layer]] = {}
    for part in parts:
        blocks.setdefault(_block(part.name), []).append(part)
    return [
        Layer(
            name,
            tuple(weights for part in block for weights in part.weights),
            {point: quantizer for part in block for point, quantizer in part.points.items()},
        )
        for name, block in blocks.items()
    ]


def _point(graph: FloatGraph, recipe: Recipe, name: str) -> dict[str, Quantizer]:
    """The point that decides the codes at `name`, with its quantizer; none for images and residual sums."""
    node: FloatNode = graph[name]
    while recipe.at(node) is None and node.operation in MOVEMENTS:
        node = graph[node.inputs[0]]
    quantizer = recipe.at(node)
    return {} if quantizer is None or node.role in ("input", "residual") else {node.name: quantizer}


def _block(name: str) -> str:
    """``blocks.3`` of ``blocks.3.attn.qkv``, ``layers.1.blocks.0`` of Swin's; other layers are on their own."""
    parts = name.split(".")
    last = max((i for i, part in enumerate(parts) if part.isdigit() and parts[i - 1] == "blocks"), default=None)
    return name if last is None else ".".join(parts[: last + 1])


def narrowed(base: Point, layer: Layer, bits: int) -> Point:
    """The base recipe with the layer's weights and points at a width; kinds and other fields are the base's."""
    return {
        **base,
        **{f"node_weights.{name}": bits for name in layer.weights},
        **{f"node.{name}": quantizer_text(quantizer, bits=bits) for name, quantizer in layer.points.items()},
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
