"""The search of a whole network: which products, on which inputs, and what becomes of the grids."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from golden.errors import HwsimError, HwsimWarning
from hwsim.execute.parallel import map_batches
from hwsim.networks.graph import MOVEMENTS, FloatGraph, FloatNode
from hwsim.networks.interpret import Interpreter, predict
from hwsim.quantize.quantizers.protocol import Grid
from hwsim.quantize.search.alternate import Product, alternate
from hwsim.quantize.search.candidates import Activation, Weight, grid_candidates
from hwsim.quantize.search.record import Loss, Record, divergence_loss, drawn_class_loss, passes, record
from hwsim.quantize.search.settings import ScaleSearch
from hwsim.quantize.weights import QuantizedWeight, SymmetricWeights

if TYPE_CHECKING:
    from hwsim.quantize.calibrate import Calibration
    from hwsim.quantize.recipe import Recipe


def searched_nodes(graph: FloatGraph) -> list[FloatNode]:
    """The matrix products of a network in execution order: what a search works through."""
    return [node for node in graph.nodes if node.operation in ("linear", "matmul")]


def search_scales(
    calibration: Calibration,
    images: np.ndarray,
    *,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Calibration:
    """Refine the grids and weights of a calibrated network as its recipe's search says.

    Parameters
    ----------
    calibration : Calibration
        Its steps are the first values.
    images : ndarray of uint8 [N, H, W, C]
    device : str
        torch device.
    progress : callable, optional
        Called with the number of layers after some of them.

    Raises
    ------
    HwsimError
        Weights that are all zero, or a gradient that is not finite.

    Warns
    -----
    UserWarning
        An activation, or one head of it, that is zero on all images keeps its first step; a layer whose
        gradient is zero on all images is searched with the metric mse.
    """
    search = calibration.recipe.search
    if not isinstance(search, ScaleSearch):
        return calibration
    _check_weights(calibration.graph, calibration.recipe)
    state = _State(calibration, search, Interpreter(calibration.graph, device), images)
    nodes = searched_nodes(calibration.graph)
    if search.mode == "parallel":
        for group in passes(calibration.graph, nodes, len(images), state.interpreter.device):
            state.settle_all(group, state.record_float(group), progress)
    else:
        for node in nodes:
            state.settle_all([node], state.record_behind_quantized(node), progress)
    return replace(calibration, grids=state.grids, weights=state.weights)


@dataclass
class _State:
    """Grids and weights as far as they are found.

    Attributes
    ----------
    settled : set of str
        Points whose search is over.
    """

    calibration: Calibration
    search: ScaleSearch
    interpreter: Interpreter
    images: np.ndarray
    grids: dict[str, Grid] = field(init=False)
    weights: dict[str, QuantizedWeight] = field(init=False)
    settled: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.grids = dict(self.calibration.grids)
        self.weights = dict(self.calibration.weights)
        graph = self.calibration.graph
        self.order = {node.name: index for index, node in enumerate(graph.nodes)}
        uses = [point for node in searched_nodes(graph) for name in node.inputs if (point := self._point(name))]
        # A point that several products read has no best step for one of them.
        self.searchable = {point for point in uses if uses.count(point) == 1 and self._candidates(point)}
        logits = predict(self.interpreter, self.images)
        self.drawn = drawn_class_loss(logits, self.search.seed)
        self.divergence = divergence_loss(logits)

    def _point(self, name: str) -> str | None:
        """The quantized point whose values an operand has, through data movement."""
        node = self.calibration.graph[name]
        while node.name not in self.grids and node.operation in MOVEMENTS:
            node = self.calibration.graph[node.inputs[0]]
        return node.name if node.name in self.grids else None

    def _candidates(self, point: str) -> list[Grid]:
        quantizer = self.calibration.recipe.quantizer_of(self.calibration.graph[point])
        return grid_candidates(self.grids[point], quantizer, self.search.factors)

    def _loss(self, loss: Loss) -> Loss | None:
        return loss if self.search.metric == "hessian" else None

    def record_float(self, nodes: list[FloatNode]) -> dict[str, Record]:
        """Records of the float network."""
        loss = self.divergence if self.search.as_released else self.drawn
        return record(self.interpreter, self.images, nodes, self._loss(loss))

    def record_behind_quantized(self, node: FloatNode) -> dict[str, Record]:
        """Records of a node behind what is quantized already; in front of that the network's own classes are drawn.

        With nothing quantized in front of it the divergence has no gradient.
        """
        place = self.order[node.name]

        def quantize(other: FloatNode, value: Tensor) -> Tensor:
            grid = self.grids.get(other.name)
            ready = other.name in self.settled or other.name not in self.searchable
            if grid is None or not ready or self.order[other.name] >= place:
                return value
            return grid.values(grid.codes(value))

        parameters: Mapping[str, Mapping[str, Tensor]] = {
            name: {"weight": torch.from_numpy(self.weights[name].values()).to(self.interpreter.device)}
            for name in self.done
            if name in self.weights
        }
        loss = self.divergence if self.done else self.drawn
        return record(self.interpreter, self.images, [node], self._loss(loss), quantize=quantize, parameters=parameters)

    def settle_all(
        self, nodes: list[FloatNode], records: dict[str, Record], progress: Callable[[int], None] | None
    ) -> None:
        """Search the candidates of some nodes, on a processor one thread each."""
        products = [self._product(node, records.pop(node.name)) for node in nodes]

        def work(part: slice) -> None:
            for product in products[part]:
                alternate(product, self.search)

        if self.interpreter.device.type == "cpu":
            with torch.inference_mode():
                map_batches(torch.inference_mode()(work), len(products), 1, progress)
        else:
            for index in range(len(products)):
                with torch.inference_mode():
                    work(slice(index, index + 1))
                if progress is not None:
                    progress(1)
        for node, product in zip(nodes, products, strict=True):
            self._keep(node, product)

    def _keep(self, node: FloatNode, product: Product) -> None:
        self.done.add(node.name)
        activations = node.inputs
        for operand, name in zip(product.operands[-len(activations) :], activations, strict=True):
            point = self._point(name)
            if isinstance(operand, Activation) and operand.grid is not None and point in self.searchable:
                assert point is not None
                self.grids[point] = operand.grid
                self.settled.add(point)
        if isinstance(product.operands[0], Weight):
            self.weights[node.name] = product.operands[0].quantized

    def _product(self, node: FloatNode, found: Record) -> Product:
        gradient = found.gradient
        if gradient is not None and not gradient.any():
            warnings.warn(
                f"{node.name}: the gradient at its output is zero on all calibration images; "
                "its scales are searched with the metric mse",
                HwsimWarning,
                stacklevel=2,
            )
            gradient = None
        if node.operation == "linear":
            device = self.interpreter.device
            weights = self.calibration.recipe.weights_for(node)
            assert isinstance(weights, SymmetricWeights)
            weight = Weight(node.parameters["weight"], weights, self.search.factors, device)
            bias = torch.from_numpy(node.parameters["bias"]).to(device)
            multiply = partial(_linear, bias)
            activation = self._activation(node.inputs[0], _tokens(found.operands[0]))
            flat = [_tokens(x) if x is not None else None for x in (found.output, gradient)]
            assert flat[0] is not None
            return Product((weight, activation), multiply, flat[0], flat[1])
        operands = [
            self._activation(name, x.flatten(0, -4)) for name, x in zip(node.inputs, found.operands, strict=True)
        ]
        scale = node.attributes["scale"]
        return Product(
            (operands[0], operands[1]),
            lambda a, b: (a @ b) * scale,
            found.output.flatten(0, -4),
            None if gradient is None else gradient.flatten(0, -4),
        )

    def _activation(self, name: str, values: Tensor) -> Activation:
        """The operand `name`; one that is zero everywhere has no candidates."""
        point = self._point(name)
        if point is None:
            return Activation(values, None, [])
        activation = Activation(values, self.grids[point], [])
        if point in self.searchable:
            dead = [
                index
                for index, part in enumerate(values.unbind(1) if activation.groups > 1 else [values])
                if not part.any()
            ]
            if dead:
                where = f"heads {dead} are" if activation.groups > 1 else "it is"
                warnings.warn(
                    f"{point}: {where} zero on all calibration images; the step stays at its first value",
                    HwsimWarning,
                    stacklevel=2,
                )
            if len(dead) < activation.groups:
                activation.candidates = self._candidates(point)
        return activation


def _linear(bias: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    return functional.linear(x, weight, bias)


def _tokens(x: Tensor) -> Tensor:
    """``[N, tokens, features]`` of any token axes."""
    return x.reshape(len(x), -1, x.shape[-1])


def _check_weights(graph: FloatGraph, recipe: Recipe) -> None:
    """Refuse groups of weights that are all zero: no scale is better than another."""
    for node in graph.nodes:
        if node.operation != "linear":
            continue
        quantizer = recipe.weights_for(node)
        if not isinstance(quantizer, SymmetricWeights):
            raise HwsimError(f"recipe {recipe.name}: the search of scales takes symmetric weights ({node.name})")
        groups = quantizer.groups or 1
        weight = node.parameters["weight"]
        for index, rows in enumerate(np.split(weight, groups) if len(weight) % groups == 0 else [weight]):
            if not rows.any():
                part = f" of group {index + 1} of {groups}" if groups > 1 else ""
                raise HwsimError(
                    f"{graph.name}: all weights{part} of {node.name} are zero, so no scale can be searched for; "
                    "check the checkpoint"
                )
