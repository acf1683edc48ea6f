"""Calibration: run a float network on images, observe every point, and keep the grids.

The order of events is that of FQ-ViT's released code: every batch runs in float
and updates the observers; in the last batch each point gets its grid as soon as
it is computed, and Log-Int-Softmax, having its score scale by then, already
works on the (not yet rounded) scores, so that the points behind it see its output.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from golden.errors import HwsimError, HwsimWarning
from hwsim.execute.parallel import batches
from hwsim.networks.graph import MOVEMENTS, FloatGraph, FloatNode
from hwsim.networks.interpret import Interpreter, Operation, check_activation
from hwsim.quantize.lost_rows import warn_of_lost_rows
from hwsim.quantize.parts import check_nodes
from hwsim.quantize.q_vit import fit_irm, rectified_parts
from hwsim.quantize.quantizers.log2 import Log2, Log2Grid
from hwsim.quantize.quantizers.protocol import Grid, Observer, update_at
from hwsim.quantize.quantizers.uniform import RangeObserver, Uniform, UniformGrid
from hwsim.quantize.ranges import PERCENTILE_VALUES, Percentile
from hwsim.quantize.recipe import Recipe
from hwsim.quantize.search.run import search_scales
from hwsim.quantize.search.settings import PairSearch, PercentileSearch
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
        wide codes. Also of the queries and keys in front of an IRM, which are parts of such a point.
    images : int
        Calibration images seen.
    tried : int
        Candidates that the search of a `PairSearch` tried: in each group of values with parameters of its own, all
        operands together.
    reconstructed : dict of str to (float, float)
        Error of each block before and behind its reconstruction, see `hwsim.quantize.reconstruct.learn`.
    """

    graph: FloatGraph
    recipe: Recipe
    grids: dict[str, Grid]
    weights: dict[str, QuantizedWeight]
    ranges: dict[str, tuple[float, float]]
    images: int
    tried: int = 0
    reconstructed: dict[str, tuple[float, float]] = field(default_factory=dict)

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
    iterations: Callable[[int], None] | None = None,
) -> Calibration:
    """Find the grid of every point, and reconstruct the blocks if the recipe says so.

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
    iterations : callable, optional
        Called with the number of iterations of a reconstruction, see `hwsim.quantize.reconstruct`.

    Raises
    ------
    HwsimError
        No images, images of the wrong size, or an activation that is not finite; of a search, also
        weights that are all zero and gradients that are not finite; of a reconstruction see `reconstruct`.

    Warns
    -----
    UserWarning
        An activation is constant; batches too small for a percentile; rows of attention of which nothing is left, see
        `hwsim.quantize.lost_rows`; see also `search_scales`.
    """
    if not len(images):
        raise HwsimError(f"{graph.name}: calibration needs at least one image")
    if recipe.irm:
        graph = fit_irm(graph, images, batch=recipe.calibration_batch, device=device)
    _check_roles(graph, recipe)
    searched = images[: recipe.search_images or None]
    found = _search(graph, searched, recipe, device, progress, layers)
    if recipe.reconstruct is None or not recipe.reconstruct.activations:
        warn_of_lost_rows(found, searched, device)
    if recipe.reconstruct is None:
        return found
    from hwsim.quantize.reconstruct.learn import reconstruct

    return reconstruct(found, images, recipe.reconstruct, device=device, progress=iterations)


def _search(
    graph: FloatGraph,
    images: np.ndarray,
    recipe: Recipe,
    device: str,
    progress: Callable[[int], None] | None,
    layers: Callable[[int], None] | None,
) -> Calibration:
    """Grids and weights by observers and searches."""
    if isinstance(recipe.search, PairSearch | PercentileSearch):
        return _calibrate_layers(graph, images, recipe, device, progress, layers)
    interpreter = Interpreter(graph, device)
    observers: dict[str, Observer] = {}
    carried: dict[str, Observer] = {}
    parts_in_front = rectified_parts(graph)
    for node in graph.nodes:
        if (quantizer := recipe.at(node)) is not None:
            observers[node.name] = quantizer.observer()
        elif node.name in parts_in_front or (node.role and node.operation not in MOVEMENTS):
            carried[node.name] = Uniform(RANGE_BITS).observer()
    grids: dict[str, Grid] = {}
    ranges: dict[str, tuple[float, float]] = {}

    parts = batches(len(images), recipe.calibration_batch)
    for part in parts:
        last = part is parts[-1]

        def observe(node: FloatNode, value: Tensor, last: bool = last) -> Tensor:
            check_activation(graph.name, node, value)
            if node.name in observers:
                update_at(node.name, observers[node.name], value)
                if last:
                    _warn_of_constant(graph, node, value)
                    grids[node.name] = observers[node.name].grid(value)
            elif node.name in carried:
                carried[node.name].update(value)
                if last:
                    ranges[node.name] = _ends(carried[node.name].grid(value))
            return value

        replaced: dict[str, Operation] = {}
        for node in graph.nodes:
            quantizer = recipe.at(node)
            if last and node.operation == "softmax" and isinstance(quantizer, Log2):
                source = graph.source(node.inputs[0]).name
                replaced[node.name] = partial(_softmax_of_last_batch, grids, source, quantizer.bits)
        interpreter.run(images[part], after=observe, operations=replaced)
        if progress is not None:
            progress(len(images[part]))
    _warn_of_short_percentiles(graph, observers)
    weights = {
        node.name: recipe.weights_for(node).quantize(node.parameters["weight"])
        for node in graph.nodes
        if node.operation == "linear"
    }
    calibration = Calibration(graph, recipe, grids, weights, ranges, len(images))
    if recipe.search is None:
        return calibration
    return search_scales(calibration, images, device=device, progress=layers)


def _calibrate_layers(
    graph: FloatGraph,
    images: np.ndarray,
    recipe: Recipe,
    device: str,
    progress: Callable[[int], None] | None,
    layers: Callable[[int], None] | None,
) -> Calibration:
    """Calibration whose grids a search of whole layers finds, and the ranges of what stays in float."""
    from hwsim.quantize.search.layerwise import search_layers
    from hwsim.quantize.search.percentile import percentile_ranges

    search = search_layers if isinstance(recipe.search, PairSearch) else percentile_ranges
    found = search(graph, images, recipe, device=device, progress=layers)
    carried: dict[str, Observer] = {}
    others: dict[str, Observer] = {}  # quantized, but no operand of a product
    last: dict[str, Tensor] = {}
    for node in found.graph.nodes:
        if (quantizer := recipe.at(node)) is not None and node.name not in found.grids:
            others[node.name] = quantizer.observer()
        elif node.role and node.name not in found.grids and node.operation not in MOVEMENTS:
            carried[node.name] = Uniform(RANGE_BITS).observer()

    def observe(node: FloatNode, value: Tensor) -> Tensor:
        check_activation(graph.name, node, value)
        if node.name in carried:
            carried[node.name].update(value)
        elif node.name in others:
            update_at(node.name, others[node.name], value)
            last[node.name] = value
        return value

    interpreter = Interpreter(found.graph, device)
    for part in batches(len(images), recipe.calibration_batch):
        interpreter.run(images[part], after=observe)
        if progress is not None:
            progress(len(images[part]))
    _warn_of_short_percentiles(found.graph, others)
    ranges = {name: _ends(observer.grid(torch.empty(0))) for name, observer in carried.items()}
    grids = found.grids | {name: observer.grid(last[name]) for name, observer in others.items()}
    return Calibration(found.graph, recipe, grids, found.weights, ranges, len(images), sum(found.tried.values()))


def _warn_of_constant(graph: FloatGraph, node: FloatNode, value: Tensor) -> None:
    low, high = value.aminmax()
    if low == high:
        warnings.warn(
            f"{graph.name}: the activation {node.name} is {float(low):g} everywhere in the last calibration batch; "
            "a range without extent is widened to 0. Check the checkpoint and the calibration images",
            HwsimWarning,
            stacklevel=2,
        )


def _warn_of_short_percentiles(graph: FloatGraph, observers: Mapping[str, Observer]) -> None:
    """One warning for all points; constants are as small with any images."""
    percentiles = {
        name: observer.range.fewest or 0
        for name, observer in observers.items()
        if isinstance(observer, RangeObserver) and isinstance(observer.range, Percentile)
    }
    needed = {
        name: -(-PERCENTILE_VALUES // math.prod(graph.shapes[name]))
        for name, fewest in percentiles.items()
        if fewest < PERCENTILE_VALUES and graph[name].operation != "constant"
    }
    if needed:
        least, most = min(needed, key=needed.__getitem__), max(needed, key=needed.__getitem__)
        advice = f"{least} needs batches of {needed[least]} images"
        if needed[most] != needed[least]:
            advice += f", {most} of {needed[most]}"
        warnings.warn(
            f"{graph.name}: at {len(needed)} of {len(percentiles)} points a batch has fewer than {PERCENTILE_VALUES} "
            f"values, so that their percentiles are nearly the minimum and maximum; {advice}",
            HwsimWarning,
            stacklevel=2,
        )


def _check_roles(graph: FloatGraph, recipe: Recipe) -> None:
    """Refuse nodes that the network does not have, and combinations of quantizers that none can have."""
    try:
        check_nodes(graph, recipe.nodes, recipe.node_weights)
    except HwsimError as error:
        raise HwsimError(f"recipe {recipe.name}: {error}") from None
    for node in graph.nodes:
        if node.operation == "softmax" and isinstance(recipe.at(node), Log2):
            source = graph.source(node.inputs[0])
            scores = recipe.at(source)
            if not isinstance(scores, Uniform) or scores.symmetric:
                raise HwsimError(
                    f"recipe {recipe.name}: Log-Int-Softmax ({node.name}) works on score codes; give the role "
                    f"{source.role!r} an asymmetric uniform quantizer"
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
