"""What training does to attention: distributions and entropies of queries and keys, and attention distances.

The quantities behind the figures 1, 4 and 5 of the Q-ViT paper (Li et al., NeurIPS 2022). The attention distance is
that of M. Raghu et al., "Do Vision Transformers See Like Convolutional Neural Networks?" (NeurIPS 2021), to which the
paper refers: how far, on average, a head looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from golden.errors import HwsimError
from hwsim.execute.parallel import batches
from hwsim.networks.graph import FloatGraph, FloatNode
from hwsim.networks.interpret import Interpreter
from hwsim.quantize.calibrate import Calibration
from hwsim.quantize.fake_quant import FakeQuantNetwork
from hwsim.quantize.q_vit import RECTIFIED
from hwsim.quantize.quantizers.protocol import Grid

BATCH = 16
# Of the histograms, in standard deviations from the mean; what lies outside counts too, in the outer bins.
EDGES = np.linspace(-4, 4, 81)
BEFORE_IRM, QUANTIZED = "before IRM", "quantizer input"

Observe = Callable[[FloatNode, Tensor], None]


@dataclass(frozen=True)
class Operand:
    """Queries or keys of one block, of all heads, tokens and images.

    Attributes
    ----------
    block : str
        Name of the attention, such as "blocks.3.attn".
    role : {"query", "key"}
    stage : str
        `BEFORE_IRM`, or `QUANTIZED`: what the quantizer, or the product, reads.
    mean, std : float
    density : ndarray of float64 [bins]
        Share of the values in each bin of `EDGES` over its width.
    gaussian_distance : float
        Total variation between this histogram and the one of the normal distribution, 0 to 1.
    bits : int or None
        Of the codes; None where there are none.
    entropy : float or None
        Of the codes, in bits.
    thresholds : tuple of float
        Where one code gives way to the next, in standard deviations from the mean.
    """

    block: str
    role: str
    stage: str
    mean: float
    std: float
    density: np.ndarray
    gaussian_distance: float
    bits: int | None
    entropy: float | None
    thresholds: tuple[float, ...]


@dataclass(frozen=True)
class Attention:
    """What was measured on one network.

    Attributes
    ----------
    label : str
    operands : tuple of Operand
        In graph order.
    distances : dict of str to ndarray of float64 [heads]
        Attention distance of each head by block, in tokens.
    even : dict of str to float
        That of a head which attends to all tokens alike.
    """

    label: str
    operands: tuple[Operand, ...]
    distances: dict[str, np.ndarray]
    even: dict[str, float]


def float_attention(label: str, graph: FloatGraph, images: np.ndarray) -> Attention:
    """Measure a float network on uint8 images [N, H, W, C]."""
    interpreter = Interpreter(graph)

    def run(part: np.ndarray, observe: Observe) -> None:
        def after(node: FloatNode, value: Tensor) -> Tensor:
            observe(node, value)
            return value

        interpreter.run(part, after=after)

    return _measure(label, graph, {}, images, run)


def trained_attention(label: str, calibration: Calibration, images: np.ndarray) -> Attention:
    """Measure a fake-quantized network on uint8 images [N, H, W, C]."""
    network = FakeQuantNetwork(calibration)

    def run(part: np.ndarray, observe: Observe) -> None:
        network.run(part, observe=observe)

    return _measure(label, calibration.graph, calibration.grids, images, run)


class _Values:
    """Moments in a first pass; histogram and codes in a second."""

    def __init__(self, grid: Grid | None) -> None:
        self.grid = grid
        self.sums = np.zeros(3)
        self.bins = np.zeros(len(EDGES) - 1)
        self.codes = np.zeros(0 if grid is None else 1 << grid.bits)

    def first(self, x: np.ndarray) -> None:
        self.sums += x.size, x.sum(), np.square(x).sum()

    @property
    def moments(self) -> tuple[float, float]:
        count, total, squares = self.sums
        mean = total / count
        return mean, math.sqrt(max(squares / count - mean**2, 0.0))

    def second(self, x: np.ndarray) -> None:
        mean, std = self.moments
        z = np.clip((x - mean) / (std or 1.0), EDGES[0], EDGES[-1])
        self.bins += np.histogram(z, EDGES)[0]
        if self.grid is not None:
            codes = self.grid.codes(torch.from_numpy(x)).numpy().astype(np.int64)
            self.codes += np.bincount(codes.ravel(), minlength=len(self.codes))

    def operand(self, block: str, role: str, stage: str) -> Operand:
        mean, std = self.moments
        shares = self.bins / self.bins.sum()
        entropy, bits, thresholds = None, None, ()
        if self.grid is not None:
            used = self.codes[self.codes > 0] / self.codes.sum()
            entropy, bits = float(-(used * np.log2(used)).sum()), self.grid.bits
            values = self.grid.values(torch.arange(float(1 << bits))).double().numpy()
            thresholds = tuple(((values[1:] + values[:-1]) / 2 - mean) / (std or 1.0))
        distance = float(np.abs(shares - normal_shares()).sum() / 2)
        density = shares / np.diff(EDGES)
        return Operand(block, role, stage, mean, std, density, distance, bits, entropy, thresholds)


def normal_shares() -> np.ndarray:
    """Share of the standard normal distribution in each bin of `EDGES`, the tails in the outer ones."""
    below = np.array([0.5 * (1 + math.erf(edge / math.sqrt(2))) for edge in EDGES])
    below[0], below[-1] = 0.0, 1.0
    shares: np.ndarray = np.diff(below)
    return shares


def _measure(
    label: str,
    graph: FloatGraph,
    grids: dict[str, Grid],
    images: np.ndarray,
    run: Callable[[np.ndarray, Observe], None],
) -> Attention:
    if not len(images):
        raise HwsimError(f"{label}: measuring attention needs at least one image")
    places: dict[str, tuple[str, str, str]] = {}
    for node in graph.nodes:
        if node.role in RECTIFIED:
            block = node.name.rpartition(".")[0]
            if node.operation == "layernorm":
                places[node.inputs[0]] = block, node.role, BEFORE_IRM
            places[node.name] = block, node.role, QUANTIZED
    values = {name: _Values(grids.get(name)) for name in places}
    positions = {
        node.name: _positions(graph, graph.shapes[node.name][-1]) for node in graph.nodes if node.operation == "softmax"
    }
    totals: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}

    def moments(node: FloatNode, value: Tensor) -> None:
        if node.name in values:
            values[node.name].first(value.double().cpu().numpy())

    def rest(node: FloatNode, value: Tensor) -> None:
        if node.name in values:
            values[node.name].second(value.cpu().numpy())
        elif node.operation == "softmax":
            grid = grids.get(node.name)
            weights = value if grid is None else grid.values(grid.codes(value))
            of_heads, rows = _distances(weights.double().cpu().numpy(), positions[node.name])
            totals[node.name] = totals.get(node.name, 0.0) + of_heads
            counts[node.name] = counts.get(node.name, 0) + rows

    for observe in (moments, rest):
        for part in batches(len(images), BATCH):
            run(images[part], observe)
    operands = tuple(values[name].operand(*places[name]) for name in places)
    distances = {name.rpartition(".")[0]: totals[name] / counts[name] for name in totals}
    even = {name.rpartition(".")[0]: float(_apart(positions[name]).mean()) for name in totals}
    return Attention(label, operands, distances, even)


def _positions(graph: FloatGraph, tokens: int) -> np.ndarray:
    """Row and column of the tokens that have a place in the image or window, [places, 2]; the last ones of a row."""
    patches = next(node for node in graph.nodes if node.operation == "patches")
    rows, columns = (side // patches.attributes["size"] for side in graph.image_size[:2])
    if rows * columns > tokens:  # a window
        rows = columns = math.isqrt(tokens)
    return np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)


def _apart(positions: np.ndarray) -> np.ndarray:
    """Distance of every two tokens, [places, places]."""
    distance: np.ndarray = np.linalg.norm(positions[:, None] - positions[None, :], axis=-1)
    return distance


def _distances(weights: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, int]:
    """Distances summed over rows [heads], and rows; of attention [N, heads, tokens, tokens].

    Tokens without a place (class, distillation) are left out, as queries and as keys, and the weights of the others
    made to add up to 1. A row that attends to none of them has no distance and counts as 0.
    """
    first = weights.shape[-1] - len(positions)
    placed = weights[..., first:, first:]
    apart = _apart(positions)
    sums = placed.sum(axis=-1)
    mean = (placed * apart).sum(axis=-1) / np.where(sums > 0, sums, 1.0)
    return mean.sum(axis=(0, 2)), mean.shape[0] * mean.shape[2]
