"""RepQ-ViT's calibration: ranges by percentiles, layer by layer behind what is quantized already.

Source: the released code of RepQ-ViT (Li et al., ICCV 2023): of three pairs of percentiles the range with the least
squared error, for weights a channel, for LayerNorm outputs a channel and then reparameterized, else a tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from golden.errors import HwsimError
from hwsim.networks.graph import FloatGraph, FloatNode
from hwsim.networks.interpret import Interpreter, check_activation
from hwsim.quantize.quantizers.log_sqrt2 import LogSqrt2, LogSqrt2Grid
from hwsim.quantize.quantizers.protocol import Grid, Quantizer
from hwsim.quantize.quantizers.uniform import FLOAT32_EPS, HeadGrid, Uniform, UniformGrid
from hwsim.quantize.recipe import Recipe
from hwsim.quantize.reparameterize import ChannelScales, reparameterizable, reparameterize
from hwsim.quantize.search.layerwise import Found, first_grid
from hwsim.quantize.weights import AsymmetricWeights, QuantizedWeight

PERCENTILES = (0.999, 0.9999, 0.99999)


def percentile_ranges(
    graph: FloatGraph,
    images: np.ndarray,
    recipe: Recipe,
    *,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Found:
    """Grids and weights of a recipe whose search is a `PercentileSearch`; all images are one batch.

    Raises
    ------
    HwsimError
        Weights that are not asymmetric, or an activation that is not finite.
    """
    weights = {node.name: least_error_weights(recipe, node) for node in graph.nodes if node.operation == "linear"}
    interpreter = Interpreter(graph, device)
    by_channel = set(reparameterizable(graph)) if recipe.reparameterize else set()
    grids: dict[str, Grid] = {}
    channels: dict[str, ChannelScales] = {}

    def after(node: FloatNode, value: Tensor) -> Tensor:
        check_activation(graph.name, node, value)
        if progress is not None and node.operation in ("linear", "matmul"):
            progress(1)
        quantizer = recipe.at(node)
        if quantizer is None:
            return value
        if node.name in by_channel and isinstance(quantizer, Uniform):
            scale, zero_point = least_error_range(value.movedim(-1, 0).flatten(1), quantizer.bits)
            channels[node.name] = ChannelScales(
                scale.cpu().numpy().astype(np.float64), zero_point.cpu().numpy().astype(np.int64), np.zeros(len(scale))
            )
            codes = ((value / scale).round() + zero_point).clamp(0, (1 << quantizer.bits) - 1)
            return (codes - zero_point) * scale
        grids[node.name] = grid = _grid(quantizer, value, node.name)
        return grid.values(grid.codes(value))

    parameters = {
        name: {"weight": torch.from_numpy(weight.values()).to(interpreter.device)} for name, weight in weights.items()
    }
    interpreter.run(images, after=after, parameters=parameters)
    if channels:
        graph, joint = reparameterize(graph, channels)
        for name, (scale, zero_point) in joint.items():
            quantizer = recipe.quantizer_of(graph[name])
            assert isinstance(quantizer, Uniform)  # checked when the channels were found
            grids[name] = UniformGrid(scale, zero_point, quantizer.bits, round_first=True)
        for linear in reparameterizable(graph).values():
            weights[linear] = least_error_weights(recipe, graph[linear])
    return Found(graph, grids, weights)


def _grid(quantizer: Quantizer, value: Tensor, name: str) -> Grid:
    if isinstance(quantizer, Uniform):
        rows = value.movedim(-3, 0).flatten(1) if quantizer.heads else value.reshape(1, -1)
        scale, zero_point = (x.cpu().numpy() for x in least_error_range(rows, quantizer.bits))
        if quantizer.heads:
            return HeadGrid(scale, zero_point.astype(np.int64), quantizer.bits, round_first=True)
        return UniformGrid(float(scale[0]), int(zero_point[0]), quantizer.bits, round_first=True)
    if isinstance(quantizer, LogSqrt2):
        scales = [float(_quantiles(value.reshape(1, -1), share)) for share in PERCENTILES]
        if not any(scales):
            # One-hot rows: even the last percentile is 0, and the values that are not are all of the range.
            scales = [float(value.max()) or 1.0]
        grids = [LogSqrt2Grid(quantizer.bits, scale) for scale in scales if scale > 0]
        errors = [float((value - grid.values(grid.codes(value))).square().mean()) for grid in grids]
        return grids[errors.index(min(errors))]
    return first_grid(quantizer, value, name)


def least_error_range(values: Tensor, bits: int, *, with_zero: bool = False) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each group [groups, values] between the percentiles of least squared error.

    With `with_zero` every range reaches to 0, so that the zero point is one of the codes.

    Returns
    -------
    scale, zero_point : Tensor of float32 [groups]
    """
    levels = (1 << bits) - 1
    best: list[Tensor] = []
    for share in PERCENTILES:
        low, high = _quantiles(values, 1 - share), _quantiles(values, share)
        if with_zero:
            low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) / levels).clamp(min=FLOAT32_EPS)
        # Signed and one bit wider than the codes in hardware.
        zero_point = (-low / scale).round().clamp(-(levels + 1), levels)
        codes = ((values / scale[:, None]).round() + zero_point[:, None]).clamp(0, levels)
        error = (values - (codes - zero_point[:, None]) * scale[:, None]).square().mean(dim=1)
        if not best:
            best = [error, scale, zero_point]
        else:
            better = error < best[0]
            best = [torch.where(better, new, old) for new, old in zip((error, scale, zero_point), best, strict=True)]
    return best[1], best[2]


def _quantiles(values: Tensor, share: float) -> Tensor:
    """Quantile of each group [groups, values], interpolated linearly, of any number of values."""
    rank = share * (values.shape[1] - 1)
    below = min(int(rank), values.shape[1] - 1)
    above = min(below + 1, values.shape[1] - 1)
    low = values.kthvalue(below + 1, dim=1).values
    high = values.kthvalue(above + 1, dim=1).values
    return low + (rank - below) * (high - low)


def least_error_weights(recipe: Recipe, node: FloatNode) -> QuantizedWeight:
    """Weights of a linear layer, a range each output channel."""
    quantizer = recipe.weights_for(node)
    if not isinstance(quantizer, AsymmetricWeights):
        raise HwsimError(f"recipe {recipe.name}: this search takes asymmetric weights ({node.name})")
    weight = node.parameters["weight"]
    # Weights have no codes for zero points outside: a channel of few inputs may well have one sign.
    scale, zero_point = least_error_range(torch.from_numpy(weight), quantizer.bits, with_zero=True)
    return quantizer.quantize(weight, scale.numpy(), zero_point.numpy())
