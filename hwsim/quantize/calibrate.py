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
from hwsim.networks.graph import MOVEMENTS, FloatGraph, FloatNode
from hwsim.networks.interpret import Interpreter, Operation, check_activation
from hwsim.quantize.quantizers.log2 import Log2, Log2Grid
from hwsim.quantize.quantizers.protocol import Grid, Observer
from hwsim.quantize.quantizers.uniform import Uniform, UniformGrid
from hwsim.quantize.recipe import Recipe
from hwsim.quantize.search.run import search_scales
from hwsim.quantize.softmax import log_int_softmax_of_reals
from hwsim.quantize.weights import QuantizedWeight

# Resolution of the range that is kept for a point that the recipe leaves in float.
RANGE_BITS = 16


@dataclass(frozen=True)
class Calibration:
    """A quantized network: float graph, recipe, grids and weights.

    Parameters
    ----------
    graph : FloatGraph
    recipe : Recipe
    grids : dict of str to Grid
        Of every quantized point, by node name.
    weights : dict of str to QuantizedWeight
        Of every linear node.
    ranges : dict of str to (float, float)
        Observed range of the points that the recipe leaves in float; the lowering carries them in
        wide codes.
    images : int
        Calibration images seen.
    """

    graph: FloatGraph
    recipe: Recipe
    grids: dict[str, Grid]
    weights: dict[str, QuantizedWeight]
    ranges: dict[str, tuple[float, float]]
    images: int

    def grid(self, name: str) -> Grid | None:
        """Grid of the codes at a node, through data movement; None where the values are floats."""
        node = self.graph[name]
        while node.name not in self.grids and node.operation in MOVEMENTS:
            node = self.graph[node.inputs[0]]
        return self.grids.get(node.name)

    def uniform_grid(self, name: str) -> UniformGrid:
        """Like `grid`, for points that must have one scale a tensor.

        Raises
        ------
        HwsimError
            They have another grid or none; names the point.
        """
        grid = self.grid(name)
        if not isinstance(grid, UniformGrid):
            raise HwsimError(
                f"{name}: this point needs one scale a tensor, recipe {self.recipe.name} gives it "
                + ("none" if grid is None else f"a {type(grid).__name__}")
            )
        return grid


def calibrate(
    graph: FloatGraph,
    images: np.ndarray,
    recipe: Recipe,
    *,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
    layers: Callable[[int], None] | None = None,
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
    layers : callable, optional
        Called with the number of layers whose scales a search has found, see `hwsim.quantize.search`.

    Raises
    ------
    HwsimError
        No images, images of the wrong size, or an activation that is not finite; of a search, also
        weights that are all zero and gradients that are not finite.
    """
    if not len(images):
        raise HwsimError(f"{graph.name}: calibration needs at least one image")
    _check_roles(graph, recipe)
    interpreter = Interpreter(graph, device)
    observers: dict[str, Observer] = {}
    carried: dict[str, Observer] = {}
    for node in graph.nodes:
        if node.role in recipe.points:
            observers[node.name] = recipe.points[node.role].observer()
        elif node.role and node.operation not in MOVEMENTS:
            carried[node.name] = Uniform(RANGE_BITS).observer()
    grids: dict[str, Grid] = {}
    ranges: dict[str, tuple[float, float]] = {}

    parts = batches(len(images), recipe.calibration_batch)
    for part in parts:
        last = part is parts[-1]

        def observe(node: FloatNode, value: Tensor, last: bool = last) -> Tensor:
            check_activation(graph.name, node, value)
            if node.name in observers:
                observers[node.name].update(value)
                if last:
                    grids[node.name] = observers[node.name].grid(value)
            elif node.name in carried:
                carried[node.name].update(value)
                if last:
                    ranges[node.name] = _ends(carried[node.name].grid(value))
            return value

        replaced: dict[str, Operation] = {}
        for node in graph.nodes:
            quantizer = recipe.points.get(node.role)
            if last and node.operation == "softmax" and isinstance(quantizer, Log2):
                source = graph.source(node.inputs[0]).name
                replaced[node.name] = partial(_softmax_of_last_batch, grids, source, quantizer.bits)
        interpreter.run(images[part], after=observe, operations=replaced)
        if progress is not None:
            progress(len(images[part]))
    weights = {
        node.name: recipe.weights_of(node.role).quantize(node.parameters["weight"])
        for node in graph.nodes
        if node.operation == "linear"
    }
    calibration = Calibration(graph, recipe, grids, weights, ranges, len(images))
    if recipe.search is None:
        return calibration
    return search_scales(calibration, images, device=device, progress=layers)


def _check_roles(graph: FloatGraph, recipe: Recipe) -> None:
    """Refuse combinations of quantizers that no network can have."""
    roles = {node.role: node for node in graph.nodes if node.role}
    if isinstance(recipe.points.get("attention"), Log2):
        node = roles["attention"]
        role = graph.source(node.inputs[0]).role
        scores = recipe.points.get(role)
        if not isinstance(scores, Uniform) or scores.symmetric:
            raise HwsimError(
                f"recipe {recipe.name}: Log-Int-Softmax ({node.name}) works on score codes; give the role "
                f"{role!r} an asymmetric uniform quantizer"
            )


def _ends(grid: Grid) -> tuple[float, float]:
    """Real values of the first and last code."""
    low, high = grid.values(torch.tensor([0.0, (1 << grid.bits) - 1.0])).tolist()
    return low, high


def _softmax_of_last_batch(
    grids: dict[str, Grid], source: str, bits: int, node: FloatNode, parameters: object, operands: list[Tensor]
) -> Tensor:
    scores = grids[source]
    assert isinstance(scores, UniformGrid)
    with torch.inference_mode():
        return Log2Grid(bits).values(log_int_softmax_of_reals(operands[0] / scores.scale, scores.scale, bits))
