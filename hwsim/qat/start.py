"""Steps and zero points of a network before its first training step, from its float activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from golden.errors import HwsimError
from hwsim.execute.parallel import batches
from hwsim.networks.graph import FloatGraph, FloatNode
from hwsim.networks.interpret import Interpreter, check_activation
from hwsim.quantize.calibrate import calibrate
from hwsim.quantize.lsq import initial_step
from hwsim.quantize.quantizers.uniform import Uniform, UniformGrid, asymmetric_grid
from hwsim.quantize.recipe import Recipe

# LSQ's formula leaves most codes of wider points unused (at 8 bit its range is 18 standard deviations a side), and
# these take the observed range; it was made for 2 to 4 bits.
WIDEST_LSQ = 4
# The released code's threshold of a negative value.
NEGATIVE = -1e-5


class Point(NamedTuple):
    """First grid of an activation.

    Attributes
    ----------
    step, zero_point : float
    one_sided : bool
        No value is negative: the zero point is 0 and not learned.
    positive : int
        LSQ's Qp.
    """

    step: float
    zero_point: float
    one_sided: bool
    positive: int


@dataclass(frozen=True)
class Start:
    """First grids of a network.

    Attributes
    ----------
    points : dict of str to Point
        By node name.
    weights : dict of str to float32 array [outputs]
        Steps of every linear node.
    """

    points: dict[str, Point]
    weights: dict[str, np.ndarray]


class _Moments:
    """Minimum, maximum and mean magnitude of a point."""

    def __init__(self) -> None:
        self.low, self.high, self.sum, self.count = float("inf"), float("-inf"), 0.0, 0

    def update(self, x: Tensor) -> None:
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        self.sum += float(x.abs().sum(dtype=torch.float64))
        self.count += x.numel()


def code_bits(recipe: Recipe, node: FloatNode) -> int:
    """Width of the uniform codes at a node."""
    quantizer = recipe.quantizer_of(node)
    assert isinstance(quantizer, Uniform)
    return quantizer.bits


def first_grids(graph: FloatGraph, recipe: Recipe, images: np.ndarray, method: str, device: str = "cpu") -> Start:
    """First steps and zero points of a float graph, IRM included.

    Weights and activations up to `WIDEST_LSQ` bits get LSQ's ``2 * mean(|x|) / sqrt(Qp)``, weights for each output
    channel; wider ones the range. A point without negative values has the zero point 0. Others begin where their
    minimum is the first code, with the middle code at most.

    Parameters
    ----------
    graph : FloatGraph
    recipe : Recipe
    images : ndarray of uint8 [N, H, W, C]
        Calibration images.
    method : {"lsq", "omse"}
        "omse" takes the activations' grids from `hwsim.quantize.calibrate` of the recipe instead.
    device : str

    Raises
    ------
    HwsimError
        No images, or an activation that is not finite.
    """
    if not len(images):
        raise HwsimError(f"{graph.name}: training needs at least one calibration image for the first steps")
    moments = {node.name: _Moments() for node in graph.nodes if recipe.at(node) is not None}

    def observe(node: FloatNode, value: Tensor) -> Tensor:
        if node.name in moments:
            check_activation(graph.name, node, value)
            moments[node.name].update(value)
        return value

    interpreter = Interpreter(graph, device)
    for part in batches(len(images), recipe.calibration_batch):
        interpreter.run(images[part], after=observe)
    points = {name: _point(found, code_bits(recipe, graph[name])) for name, found in moments.items()}
    if method == "omse":
        grids = calibrate(graph, images, recipe, device=device).grids
        for name, point in points.items():
            grid = grids[name]
            assert isinstance(grid, UniformGrid)
            points[name] = point._replace(step=grid.scale, zero_point=0 if point.one_sided else grid.zero_point)
    weights = {}
    for node in graph.nodes:
        if node.operation == "linear":
            quantizer, weight = recipe.weights_for(node), node.parameters["weight"]
            if quantizer.bits > WIDEST_LSQ:
                weights[node.name] = quantizer.quantize(weight).scale
            else:
                mean = torch.from_numpy(np.abs(weight).mean(axis=1))
                weights[node.name] = initial_step(mean, (1 << (quantizer.bits - 1)) - 1).numpy()
    return Start(points, weights)


def _point(found: _Moments, bits: int) -> Point:
    levels = (1 << bits) - 1
    one_sided = found.low >= NEGATIVE
    # A negative part below one of 2**bits equal parts of the range, as behind GELU, takes no code of its own.
    positive = levels if -found.low * (levels + 1) <= found.high - found.low else levels >> 1
    if bits > WIDEST_LSQ:
        low = torch.tensor(0.0 if one_sided else found.low)
        step, zero = asymmetric_grid(low, torch.tensor(found.high), bits)
        return Point(step, zero, one_sided, positive)
    step = float(initial_step(torch.tensor(found.sum / found.count), positive))
    zero = 0 if one_sided else min(max(round(-found.low / step), 0), 1 << (bits - 1))
    return Point(step, float(zero), one_sided, positive)
