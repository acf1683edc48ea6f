"""Calibration of a network whose quantizers have two parameters: AdaLog's order of events, layer by layer.

Every layer is searched on the inputs that the float network gives it. First the LayerNorms get a grid a channel and
are reparameterized; then each product's operands are searched, each by its own error and then in turns by the
error of the product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from golden.errors import HwsimError
from hwsim.execute.parallel import batches, map_batches
from hwsim.networks.graph import MOVEMENTS, FloatGraph, FloatNode
from hwsim.networks.interpret import Interpreter, check_activation
from hwsim.quantize.quantizers.adalog import SEARCHED_Q, AdaLog, AdaLogGrid
from hwsim.quantize.quantizers.log_sqrt2 import LogSqrt2, ShiftLogSqrt2, ShiftLogSqrt2Grid
from hwsim.quantize.quantizers.protocol import Grid, Quantizer, update_at
from hwsim.quantize.quantizers.shift_adalog import ShiftAdaLog, ShiftAdaLogGrid
from hwsim.quantize.quantizers.twin import SOFTMAX_SHIFTS, TwinGelu, TwinGeluGrid, TwinSoftmax
from hwsim.quantize.quantizers.uniform import Uniform
from hwsim.quantize.recipe import Recipe
from hwsim.quantize.reparameterize import ChannelScales, reparameterizable, reparameterize
from hwsim.quantize.search.pairs import FloatOperand, GridOperand, Operand, ShiftedLogOperand, UniformOperand
from hwsim.quantize.search.record import Record, passes, record
from hwsim.quantize.search.settings import PairSearch
from hwsim.quantize.weights import AsymmetricWeights, QuantizedWeight

# Zero points that a search begins with, as released; weights and factors of a product have at most half their codes.
ZERO_POINTS = 16
# Octaves of a twin quantizer's positive step behind GELU, as AdaLog's code compares with.
TWIN_OCTAVES = range(-5, 25)
BATCH = 32

Progress = Callable[[int], None]


@dataclass
class Found:
    """What the search of a network gives.

    Attributes
    ----------
    graph : FloatGraph
        Reparameterized.
    grids : dict of str to Grid
    weights : dict of str to QuantizedWeight
    tried : dict of str to int
        Candidates tried for a product, in a group of each operand; of a reparameterized LayerNorm, in each channel.
    """

    graph: FloatGraph
    grids: dict[str, Grid] = field(default_factory=dict)
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    tried: dict[str, int] = field(default_factory=dict)


def search_layers(
    graph: FloatGraph, images: np.ndarray, recipe: Recipe, *, device: str = "cpu", progress: Progress | None = None
) -> Found:
    """Grids and weights of a recipe whose search is a `PairSearch`.

    Parameters
    ----------
    graph : FloatGraph
    images : ndarray of uint8 [N, H, W, C]
    recipe : Recipe
    device : str
        torch device.
    progress : callable, optional
        Called with the number of products after some of them.

    Raises
    ------
    HwsimError
        Weights that are zero or not asymmetric, an activation that is not finite, or a quantizer that the search does
        not know.
    """
    search = recipe.search
    assert isinstance(search, PairSearch)
    tried: dict[str, int] = {}
    # Before a reparameterization, which makes zeros of the weights behind channels that are constant.
    _check_weights(graph)
    if recipe.reparameterize:
        channels = channel_scales(graph, images, recipe, search, device, tried)
        graph, _ = reparameterize(graph, channels)
    interpreter = Interpreter(graph, device)
    found = Found(graph, tried=tried)
    nodes = [node for node in graph.nodes if node.operation in ("linear", "matmul")]
    for group in passes(graph, nodes, len(images), interpreter.device):
        records = record(interpreter, images, group, None)
        products = [_Product(found, recipe, search, node, records.pop(node.name)) for node in group]
        _work(products, interpreter.device, progress)
        for product in products:
            product.keep()
    return found


def _check_weights(graph: FloatGraph) -> None:
    """Refuse weights that are all zero: no scale is better than another."""
    for node in graph.nodes:
        if node.operation == "linear" and not node.parameters["weight"].any():
            raise HwsimError(
                f"{graph.name}: all weights of {node.name} are zero, so no scale can be searched for; "
                "check the checkpoint"
            )


def _work(products: Sequence[_Product], device: torch.device, progress: Progress | None) -> None:
    """Search the products, on a processor one thread each."""

    @torch.inference_mode()
    def work(part: slice) -> None:
        for product in products[part]:
            product.search()

    if device.type == "cpu":
        map_batches(work, len(products), 1, progress)
        return
    for index in range(len(products)):
        work(slice(index, index + 1))
        if progress is not None:
            progress(1)


def channel_scales(
    graph: FloatGraph, images: np.ndarray, recipe: Recipe, search: PairSearch, device: str, tried: dict[str, int]
) -> dict[str, ChannelScales]:
    """A grid a channel of the LayerNorm outputs that are reparameterized, by their own squared error.

    `tried` gets the number of candidates of each.
    """
    interpreter = Interpreter(graph, device)
    nodes = [graph[name] for name in reparameterizable(graph)]
    bits = {node.name: quantizer.bits for node in nodes if isinstance(quantizer := recipe.at(node), Uniform)}
    nodes = [node for node in nodes if node.name in bits]
    found = {}
    for group in passes(graph, nodes, len(images), interpreter.device):
        values = observe(interpreter, images, [node.name for node in group])
        rows = [values.pop(node.name).flatten(0, -2)[None, None] for node in group]
        centres = [x.mean(dim=(0, 1, 2)) * (search.method != "released") for x in rows]
        operands = [
            UniformOperand(
                x - centre,
                bits[node.name],
                "element",
                search,
                zero_points=ZERO_POINTS,
                limit=search.values,
            )
            for node, x, centre in zip(group, rows, centres, strict=True)
        ]

        @torch.inference_mode()
        def work(part: slice, operands: list[UniformOperand] = operands) -> None:
            for operand in operands[part]:
                operand.search(None)

        map_batches(work, len(operands), 1)
        for node, operand, centre in zip(group, operands, centres, strict=True):
            tried[node.name] = operand.tried
            scale, zero_point, middle = (
                x.cpu().numpy().astype(np.float64) for x in (operand.scale, operand.zero_point, centre)
            )
            found[node.name] = ChannelScales(scale, zero_point.astype(np.int64), middle)
    return found


def observe(interpreter: Interpreter, images: np.ndarray, names: Sequence[str]) -> dict[str, Tensor]:
    """Values of nodes on all images.

    Raises
    ------
    HwsimError
        One is not finite.
    """
    kept: dict[str, list[Tensor]] = {name: [] for name in names}

    def after(node: FloatNode, value: Tensor) -> Tensor:
        if node.name in kept:
            check_activation(interpreter.graph.name, node, value)
            kept[node.name].append(value)
        return value

    for part in batches(len(images), BATCH):
        interpreter.run(images[part], after=after)
    return {name: torch.cat(parts) for name, parts in kept.items()}


class _Product:
    """A linear layer or a product of two activations, and what becomes of its operands."""

    def __init__(self, found: Found, recipe: Recipe, search: PairSearch, node: FloatNode, values: Record) -> None:
        self.found, self.recipe, self.settings, self.node = found, recipe, search, node
        self.points = [_point(found.graph, recipe, name) for name in node.inputs]
        if node.operation == "linear":
            self.weight = self._weight(values.operands[0].device)
            rows = values.operands[0].flatten(0, -2)[None, None]
            self.operands: list[Operand] = [self.weight, self._activation(0, rows)]
        else:
            first, second = (x.flatten(0, -4) for x in values.operands)
            self.operands = [self._activation(0, first), self._activation(1, second.mT)]

    def _weight(self, device: torch.device) -> UniformOperand:
        quantizer = self.recipe.weights_for(self.node)
        if not isinstance(quantizer, AsymmetricWeights):
            raise HwsimError(f"recipe {self.recipe.name}: this search takes asymmetric weights ({self.node.name})")
        rows = torch.from_numpy(self.node.parameters["weight"]).to(device)[None, None]
        zero_points = min(ZERO_POINTS, 1 << (quantizer.bits - 1))
        return UniformOperand(rows, quantizer.bits, "row", self.settings, zero_points=zero_points)

    def _activation(self, index: int, rows: Tensor) -> Operand:
        point = self.points[index]
        if point is None:
            return FloatOperand(rows)
        check_activation(self.found.graph.name, point, rows)
        quantizer = self.recipe.quantizer_of(point)
        if isinstance(quantizer, Uniform):
            group = "head" if quantizer.heads else "tensor"
            zero_points = ZERO_POINTS
            if self.node.operation == "matmul":
                zero_points = min(ZERO_POINTS, 1 << (quantizer.bits - 1))
            return UniformOperand(
                rows, quantizer.bits, group, self.settings, zero_points=zero_points, limit=self.settings.values
            )
        if isinstance(quantizer, ShiftAdaLog | ShiftLogSqrt2):
            grid = first_grid(quantizer, rows, point.name)
            assert isinstance(grid, ShiftAdaLogGrid | ShiftLogSqrt2Grid)
            return ShiftedLogOperand(rows, grid, getattr(quantizer, "q", 0), self.settings)
        return GridOperand(rows, _grids(quantizer, rows, point.name), self.settings.values)

    def search(self) -> None:
        """Each operand by its own error, then in turns by the error of the product.

        A turn that finds the other operand as the one before did would choose the same again.
        """
        first, second = self.operands
        first.search(None)
        second.search(None)
        seen: list[tuple[float, ...] | None] = [None, None]
        for _ in range(self.settings.rounds):
            for turn, (operand, other) in enumerate(((first, second), (second, first))):
                if seen[turn] != other.choice:
                    seen[turn] = other.choice
                    operand.search(other)

    def keep(self) -> None:
        """Hand over grids and weights."""
        activations = self.operands[-len(self.points) :]
        for point, operand in zip(self.points, activations, strict=True):
            if point is None:
                continue
            assert isinstance(operand, UniformOperand | GridOperand | ShiftedLogOperand)
            grid: Grid = operand.grid() if isinstance(operand, UniformOperand) else operand.grid
            self.found.grids.setdefault(point.name, grid)
        self.found.tried[self.node.name] = sum(operand.tried for operand in self.operands)
        if self.node.operation == "linear":
            scale, zero_point = (x.cpu().numpy() for x in (self.weight.scale, self.weight.zero_point))
            quantizer = self.recipe.weights_for(self.node)
            assert isinstance(quantizer, AsymmetricWeights)
            self.found.weights[self.node.name] = quantizer.quantize(self.node.parameters["weight"], scale, zero_point)


def _point(graph: FloatGraph, recipe: Recipe, name: str) -> FloatNode | None:
    """The node whose quantizer an operand has, through data movement."""
    node = graph[name]
    while recipe.at(node) is None and node.operation in MOVEMENTS:
        node = graph[node.inputs[0]]
    return None if recipe.at(node) is None else node


def first_grid(quantizer: Quantizer, rows: Tensor, point: str) -> Grid:
    """The grid that a quantizer has before any search.

    Raises
    ------
    HwsimError
        Values that it does not take; names the point.
    """
    observer = quantizer.observer()
    update_at(point, observer, rows)
    return observer.grid(rows)


def _grids(quantizer: Quantizer, rows: Tensor, point: str) -> list[Grid]:
    """All grids of a quantizer with few of them."""
    if isinstance(quantizer, AdaLog):
        return [AdaLogGrid(quantizer.bits, q) for q in ([quantizer.q] if quantizer.q else SEARCHED_Q)]
    if isinstance(quantizer, TwinSoftmax):
        return [quantizer.grid(shift) for shift in SOFTMAX_SHIFTS]
    if isinstance(quantizer, TwinGelu):
        return [
            TwinGeluGrid(quantizer.negative, quantizer.negative * 2.0**octave, quantizer.bits)
            for octave in TWIN_OCTAVES
        ]
    if isinstance(quantizer, LogSqrt2):
        return [first_grid(quantizer, rows, point)]
    raise HwsimError(f"{point}: this search does not know a {type(quantizer).__name__}")
