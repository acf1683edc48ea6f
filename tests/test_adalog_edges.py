"""AdaLog and RepQ-ViT on networks with dead parts, and on points that a quantizer does not take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from conftest import quick
from golden.errors import HwsimError
from hwsim.audit import audit
from hwsim.execute import Executor
from hwsim.networks.graph import FloatGraph
from hwsim.quantize.adalog import adalog, repq_vit
from hwsim.quantize.calibrate import calibrate
from hwsim.quantize.lowering import lower
from hwsim.quantize.recipe import Lowering

Parameters = dict[str, np.ndarray]


def edited(graph: FloatGraph, name: str, edit: Callable[[Parameters], None]) -> FloatGraph:
    """The network with other parameters of one node."""
    nodes = []
    for node in graph.nodes:
        if node.name == name:
            parameters = {key: array.copy() for key, array in node.parameters.items()}
            edit(parameters)
            node = dataclasses.replace(node, parameters=parameters)
        nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(nodes))


def row_of(factor: float) -> Callable[[Parameters], None]:
    """Weights of output channel 3 times a factor, its bias 0.5."""

    def edit(parameters: Parameters) -> None:
        parameters["weight"][3] *= factor
        parameters["bias"][3] = 0.5

    return edit


def no_gamma(parameters: Parameters) -> None:
    parameters["weight"][:] = 0


RECIPES = {
    "repq-vit": repq_vit("6/6/6"),
    "adalog": quick(adalog("6/6/6")),
    "adalog log-sqrt2": quick(adalog("6/6/6", attention="log-sqrt2", gelu="log-sqrt2")),
    "adalog twin": quick(adalog("6/6/6", gelu="twin")),
}


@pytest.mark.parametrize("factor", [0, 1e-6])
@pytest.mark.parametrize("name", RECIPES)
def test_a_row_of_weights_that_is_dead_or_nearly(
    name: str, factor: float, small_graph: FloatGraph, small_images: np.ndarray
) -> None:
    """Its bias is an integer beyond all widths in units of what it weighs."""
    graph = edited(small_graph, "blocks.0.mlp.fc2", row_of(factor))
    calibration = calibrate(graph, small_images[:8], RECIPES[name])
    program = lower(calibration)
    fast, slow = (
        Executor(program, backend).run(small_images[:2], keep=["blocks.0.mlp.fc2"])[1]["blocks.0.mlp.fc2"]
        for backend in ("numba", "reference")
    )
    assert np.array_equal(fast, slow)
    scale, zero_point = (program.header["scales"]["blocks.0.mlp.fc2"][key] for key in ("scale", "zero_point"))
    assert np.abs(fast[..., 3] - (0.5 / scale + zero_point)).max() <= 1
    assert fast[..., 2].std() > 10  # the others are alive
    result = audit(calibration, program, small_images[:8])
    assert max(point.local.mean for point in result.points) < 0.03
    assert result.same_prediction > 0.8


@pytest.mark.parametrize("norm", ["blocks.0.norm1", "blocks.1.norm2"])
@pytest.mark.parametrize("name", ["repq-vit", "adalog"])
def test_a_layernorm_without_any_gamma(name: str, norm: str, small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """Its output is beta, which the reparameterization moves into the bias of a layer without weights."""
    calibration = calibrate(edited(small_graph, norm, no_gamma), small_images[:8], RECIPES[name])
    layer = "blocks.0.attn.qkv" if norm.endswith("norm1") else "blocks.1.mlp.fc1"
    assert not calibration.graph[layer].parameters["weight"].any()
    program = lower(calibration)
    for point in audit(calibration, program, small_images[:4]).points:
        assert point.local.largest <= 1, point
    fast, slow = (Executor(program, backend).run(small_images[:2])[0] for backend in ("numba", "reference"))
    assert np.array_equal(fast, slow)


def test_what_is_still_too_wide_names_its_layer(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    def huge(parameters: Parameters) -> None:
        row_of(1e-6)(parameters)
        parameters["bias"][3] = 30

    recipe = quick(adalog("6/6/6", lowering=Lowering(multiplier_bits=31)))
    calibration = calibrate(edited(small_graph, "blocks.0.mlp.fc2", huge), small_images[:4], recipe)
    with pytest.raises(HwsimError, match=r"^blocks\.0\.mlp\.fc2: requantize spec: input of .* exceeds 62 bits"):
        lower(calibration)


def test_weights_of_zero_are_told_of_where_the_checkpoint_has_them(
    small_graph: FloatGraph, small_images: np.ndarray
) -> None:
    graph = edited(small_graph, "blocks.0.attn.qkv", no_gamma)
    with pytest.raises(HwsimError, match=r"small: all weights of blocks\.0\.attn\.qkv are zero.*check the checkpoint"):
        calibrate(graph, small_images[:4], RECIPES["adalog"])
