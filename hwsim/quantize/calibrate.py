"""Calibration: run a float network on images, observe every point, and keep the grids.

The order of events is that of FQ-ViT's released code: every batch runs in float
and updates the observers; in the last batch each point gets its grid as soon as
it is computed, and Log-Int-Softmax, having its score scale by then, already
works on the (not yet rounded) scores, so that the points behind it see its output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from golden.errors import HwsimError
from hwsim.execute.parallel import batches
from hwsim.networks.graph import FloatGraph, FloatNode
from hwsim.networks.interpret import Interpreter, Operation, check_activation
from hwsim.quantize.grids import FLOAT32_EPS, Grid, Log2Grid, UniformGrid
from hwsim.quantize.observers import Log2, Observer, Uniform
from hwsim.quantize.recipe import Recipe
from hwsim.quantize.softmax import log_int_softmax_of_reals

# Of the grid that keeps the range of a hidden activation; the lowering chooses its own width.
HIDDEN_RANGE_BITS = 16


@dataclass(frozen=True)
class Calibration:
    """A quantized network: float graph, recipe, and the grid of every point.

    Parameters
    ----------
    graph : FloatGraph
    recipe : Recipe
    grids : dict of str to Grid
        By node name. Points of role "hidden" are there for the lowering only; the
        published fake-quantized networks leave them in float.
    images : int
        Calibration images seen.
    """

    graph: FloatGraph
    recipe: Recipe
    grids: dict[str, Grid]
    images: int

    def grid(self, name: str) -> Grid:
        """Grid of the codes at a node, through data movement."""
        return self.grids[self.graph.source(name).name]

    def uniform_grid(self, name: str) -> UniformGrid:
        """Like `grid`, for points that must have one scale a tensor."""
        grid = self.grid(name)
        if not isinstance(grid, UniformGrid):
            raise HwsimError(
                f"{name}: this point needs one scale a tensor, the recipe gives it a {type(grid).__name__}"
            )
        return grid

    def quantized_weight(self, node: FloatNode) -> tuple[np.ndarray, np.ndarray]:
        """Weight codes int64 [outputs, inputs] and scales float64 [outputs] of a linear node.

        Symmetric, one scale an output channel: ``max|w| / (2**bits - 1) * 2``, codes clipped to the
        signed range (FQ-ViT's released MinMax weights).
        """
        weight = node.parameters["weight"]
        half = np.float32(((1 << self.recipe.weight_bits) - 1) / 2)
        scale = np.maximum(np.abs(weight).max(axis=1) / half, np.float32(FLOAT32_EPS))
        limit = 1 << (self.recipe.weight_bits - 1)
        codes = np.clip(np.rint(weight / scale[:, None]), -limit, limit - 1)
        return codes.astype(np.int64), scale.astype(np.float64)


def calibrate(
    graph: FloatGraph,
    images: np.ndarray,
    recipe: Recipe,
    *,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Calibration:
    """Find the grid of every point.

    Parameters
    ----------
    graph : FloatGraph
    images : ndarray of uint8 [N, H, W, C]
        Calibration images, in batches of `recipe.calibration_batch` in this order.
    recipe : Recipe
    device : str
        torch device.
    progress : callable, optional
        Called with the number of images after each batch.

    Raises
    ------
    HwsimError
        No images, images of the wrong size, or an activation that is not finite.
    """
    if not len(images):
        raise HwsimError(f"{graph.name}: calibration needs at least one image")
    interpreter = Interpreter(graph, device)
    observers: dict[str, Observer] = {}
    for node in graph.nodes:
        if node.role == "hidden":
            observers[node.name] = Uniform(HIDDEN_RANGE_BITS).observer()
        elif node.role:
            if node.role not in recipe.points:
                raise HwsimError(
                    f"recipe {recipe.name} has no quantizer for points of role {node.role!r} ({node.name})"
                )
            observers[node.name] = recipe.points[node.role].observer()
    grids: dict[str, Grid] = {}

    parts = batches(len(images), recipe.calibration_batch)
    for part in parts:
        last = part is parts[-1]

        def observe(node: FloatNode, value: Tensor, last: bool = last) -> Tensor:
            check_activation(graph.name, node, value)
            if node.name in observers:
                observers[node.name].update(value)
                if last:
                    grids[node.name] = observers[node.name].grid(value)
            return value

        replaced: dict[str, Operation] = {}
        if last and isinstance(recipe.points["attention"], Log2):
            for node in graph.nodes:
                if node.operation == "softmax":
                    replaced[node.name] = partial(_softmax_of_last_batch, grids, recipe.points["attention"].bits)
        interpreter.run(images[part], after=observe, operations=replaced)
        if progress is not None:
            progress(len(images[part]))
    return Calibration(graph, recipe, grids, len(images))


def _softmax_of_last_batch(
    grids: dict[str, Grid], bits: int, node: FloatNode, parameters: object, operands: list[Tensor]
) -> Tensor:
    scores = grids[node.inputs[0]]
    assert isinstance(scores, UniformGrid)
    with torch.inference_mode():
        return Log2Grid(bits).values(log_int_softmax_of_reals(operands[0] / scores.scale, scores.scale, bits))
