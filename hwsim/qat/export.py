"""From a trained network to a calibration, which lowers to an integer program as any other; and its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from golden.errors import HwsimError
from golden.tensor_file import load_tensors, save_tensors
from hwsim.execute.parallel import batches
from hwsim.networks.graph import MOVEMENTS, FloatGraph, FloatNode
from hwsim.networks.interpret import check_activation
from hwsim.qat.network import QuantizedNetwork
from hwsim.quantize.calibrate import Calibration
from hwsim.quantize.fake_quant import FakeQuantNetwork
from hwsim.quantize.q_vit import rectified_parts
from hwsim.quantize.quantizers.protocol import Grid, Quantizer
from hwsim.quantize.quantizers.uniform import Uniform, UniformGrid
from hwsim.quantize.recipe import Lowering, Recipe
from hwsim.quantize.weights import QuantizedWeight, SymmetricWeights

PURPOSE = "trained network"
FORMAT_VERSION = 1
REMEDY = "train again with `hwsim train`"
# Fields of a recipe that a trained network cannot have.
UNTRAINED = ("search", "reparameterize", "search_images", "reconstruct")


def calibration_of(network: QuantizedNetwork, images: np.ndarray) -> Calibration:
    """The calibration that a trained network is.

    Its grids and weights are the learned ones. The images show the ranges of the points that the recipe leaves in
    float, in the fake-quantized network.

    Parameters
    ----------
    network : QuantizedNetwork
    images : ndarray of uint8 [N, H, W, C]
        Calibration images.

    Raises
    ------
    HwsimError
        No images, or an activation that is not finite.
    """
    graph, recipe = network.graph, network.recipe
    values = {key: tensor.detach().cpu().numpy() for key, tensor in network.named_tensors().items()}
    nodes = []
    weights: dict[str, QuantizedWeight] = {}
    for node in graph.nodes:
        trained = {name: values[f"{node.name}.{name}"].copy() for name in node.parameters}
        nodes.append(replace(node, parameters=trained))
        if node.operation == "linear":
            step = network.step(f"{node.name}.weight").detach().cpu().numpy()[:, 0]
            weights[node.name] = SymmetricWeights(network.bits[f"{node.name}.weight"]).quantize(trained["weight"], step)
    grids: dict[str, Grid] = {}
    for name in network.points():
        bits = network.bits[name]
        zero = int(network.zero_point(name).detach().round().clamp(0, (1 << bits) - 1))
        grids[name] = UniformGrid(float(network.step(name).detach()), zero, bits)
    calibration = Calibration(replace(graph, nodes=tuple(nodes)), recipe, grids, weights, {}, len(images))
    return replace(calibration, ranges=float_ranges(calibration, images, str(network.device)))


def float_ranges(calibration: Calibration, images: np.ndarray, device: str = "cpu") -> dict[str, tuple[float, float]]:
    """Range of every point without codes, of images that pass the fake-quantized network.

    Raises
    ------
    HwsimError
        No images, or an activation that is not finite.
    """
    graph = calibration.graph
    if not len(images):
        raise HwsimError(f"{graph.name}: calibration needs at least one image")
    found: dict[str, tuple[float, float]] = {}
    parts = rectified_parts(graph)

    def observe(node: FloatNode, value: Tensor) -> None:
        check_activation(graph.name, node, value)
        if node.name in calibration.grids:
            return
        if node.name in parts or (node.role and node.operation not in MOVEMENTS):
            low, high = (float(end) for end in value.aminmax())
            before = found.get(node.name, (low, high))
            found[node.name] = min(low, before[0]), max(high, before[1])

    network = FakeQuantNetwork(calibration, device)
    for batch in batches(len(images), calibration.recipe.calibration_batch):
        network.run(images[batch], observe=observe)
    return found


def save_trained(path: Path, calibration: Calibration, header: Mapping[str, Any]) -> None:
    """Write a trained network: float parameters, steps, zero points, ranges.

    Parameters
    ----------
    path : Path
    calibration : Calibration
        Of `calibration_of`.
    header : mapping
        JSON values that tell how it was trained.

    Raises
    ------
    HwsimError
        The file cannot be written.
    """
    graph, recipe = calibration.graph, calibration.recipe
    arrays = {f"{node.name}:{name}": array for node in graph.nodes for name, array in node.parameters.items()}
    arrays |= {f"{name}:step": weight.scale.astype(np.float32) for name, weight in calibration.weights.items()}
    content = {
        "network": {
            "name": graph.name,
            "image_size": graph.image_size,
            "mean": graph.mean,
            "std": graph.std,
            "classes": graph.classes,
            "crop_ratio": graph.crop_ratio,
            "nodes": [[node.name, node.operation, node.role, node.inputs, node.attributes] for node in graph.nodes],
        },
        "recipe": _recipe_record(recipe),
        "grids": {name: {**grid.record(), "bits": grid.bits} for name, grid in calibration.grids.items()},
        "ranges": calibration.ranges,
        "images": calibration.images,
        "training": dict(header),
    }
    save_tensors(path, PURPOSE, FORMAT_VERSION, content, arrays)


def load_trained(path: Path) -> tuple[Calibration, dict[str, Any]]:
    """Read a file of `save_trained`; it needs no other file, and no timm.

    Returns
    -------
    calibration : Calibration
    training : dict
        How it was trained.

    Raises
    ------
    HwsimError
        The file is missing, damaged or no trained network; names it.
    """
    content, arrays = load_tensors(path, PURPOSE, FORMAT_VERSION, REMEDY)
    try:
        described = dict(content["network"])
        nodes = []
        for name, operation, role, inputs, attributes in described.pop("nodes"):
            owned = [key for key in arrays if key.startswith(f"{name}:") and not key.endswith(":step")]
            parameters = {key[len(name) + 1 :]: arrays[key] for key in owned}
            nodes.append(FloatNode(name, operation, role, tuple(inputs), parameters, attributes))
        for field in ("image_size", "mean", "std"):
            described[field] = tuple(described[field])
        graph = FloatGraph(nodes=tuple(nodes), **described)
        recipe = _recipe_of(content["recipe"])
        grids: dict[str, Grid] = {name: UniformGrid(**grid) for name, grid in content["grids"].items()}
        weights = {
            node.name: recipe.weights_for(node).quantize(node.parameters["weight"], arrays[f"{node.name}:step"])
            for node in graph.nodes
            if node.operation == "linear"
        }
        ranges = {name: (float(low), float(high)) for name, (low, high) in content["ranges"].items()}
        return Calibration(graph, recipe, grids, weights, ranges, int(content["images"])), content["training"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HwsimError(f"{path}: malformed {PURPOSE} ({error!r}); {REMEDY}") from None


def _recipe_record(recipe: Recipe) -> dict[str, Any]:
    """JSON of a recipe that `hwsim.qat.network.check_trainable` lets pass."""
    record = {key: value for key, value in asdict(recipe).items() if key not in UNTRAINED}
    for place in ("points", "nodes"):
        quantizers: Mapping[str, Quantizer | None] = getattr(recipe, place)
        record[place] = {
            name: asdict(quantizer) if isinstance(quantizer, Uniform) else None
            for name, quantizer in quantizers.items()
        }
    return record


def _recipe_of(record: Mapping[str, Any]) -> Recipe:
    values = dict(record)
    values["weights"] = SymmetricWeights(**values["weights"])
    values["weights_at"] = {role: SymmetricWeights(**weights) for role, weights in values["weights_at"].items()}
    for place in ("points", "nodes"):
        values[place] = {name: None if at is None else Uniform(**at) for name, at in values[place].items()}
    values["lowering"] = Lowering(**values["lowering"])
    return Recipe(**values)
