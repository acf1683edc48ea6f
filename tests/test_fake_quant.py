"""The torch forms of the published procedures against `golden.published`, code by code."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from conftest import quantize_small, small_swin
from golden.published import int_layernorm, log_int_softmax
from hwsim.networks.graph import FloatGraph, FloatNode
from hwsim.networks.load import float_graph
from hwsim.quantize import softmax
from hwsim.quantize.fake_quant import FakeQuantNetwork, _integer_layernorm
from hwsim.quantize.quantizers.power_of_two import PowerOfTwoGrid
from hwsim.quantize.quantizers.uniform import UniformGrid


@pytest.mark.parametrize("scale", [0.004, 0.02, 0.0625, 0.3, 1.1])
@pytest.mark.parametrize("bits", [2, 4])
def test_log_int_softmax(scale: float, bits: int) -> None:
    rng = np.random.default_rng(3)
    scale = float(np.float32(scale))
    scores = rng.integers(-128, 128, (200, 50)) // rng.integers(1, 20, (200, 1))
    codes = softmax.log_int_softmax(torch.from_numpy(scores).float(), scale, bits).numpy().astype(int)
    codes[codes == 1 << bits] = -1
    assert np.array_equal(codes, log_int_softmax(scores, scale, bits=bits))
    # On integers, the form for real scores is the same procedure.
    real = softmax.log_int_softmax_of_reals(torch.from_numpy(scores).double(), scale, bits).numpy().astype(int)
    real[real == 1 << bits] = -1
    assert np.array_equal(real, codes)


@pytest.mark.parametrize("one_scale", [False, True])
def test_integer_layernorm(one_scale: bool) -> None:
    rng = np.random.default_rng(4)
    channels = 48
    alpha = rng.integers(0, 4, channels) * (not one_scale)
    alpha[0] = 0
    base = float(np.float32(0.013))
    incoming = UniformGrid(base, 120, 8) if one_scale else PowerOfTwoGrid(base, alpha, 120, 8)
    outgoing = UniformGrid(float(np.float32(0.031)), 7, 8)
    gamma, beta = (rng.normal(0, 1, channels).astype(np.float32) for _ in range(2))
    gamma[5] = 0
    codes = rng.integers(0, 256, (300, channels))
    codes[7] = 120  # every value 0: no variance
    x = incoming.values(torch.from_numpy(codes).float())
    parameters = {"weight": torch.from_numpy(gamma), "bias": torch.from_numpy(beta)}
    node = FloatNode("n", "layernorm", parameters={"weight": gamma, "bias": beta}, attributes={"eps": 1e-6})
    y = _integer_layernorm(incoming, outgoing, node, parameters, [x]).double() / outgoing.scale
    expected = int_layernorm(codes - 120, alpha, base, gamma, beta, outgoing.scale)
    assert np.array_equal(np.rint(y.numpy()), expected)


@pytest.mark.parametrize("pts", [False, True])
def test_with_power_of_two_scales_every_layernorm_of_swin_is_the_integer_one(
    pts: bool, small_images: np.ndarray
) -> None:
    """Released: the mode is one for the network, so that norms of one-scale inputs (the first two) have it too."""
    pytest.importorskip("timm")
    graph = float_graph(small_swin(), "swin", mean=(0.5,) * 3, std=(0.25,) * 3)
    calibration, _ = quantize_small(graph, small_images, "8/8/8", pts=pts)
    codes: dict[str, np.ndarray] = {}
    FakeQuantNetwork(calibration).run(small_images[:8], codes)
    norms = [node for node in graph.nodes if node.operation == "layernorm"]
    one_scale = [node for node in norms if isinstance(calibration.grid(node.inputs[0]), UniformGrid)]
    assert len(one_scale) == (2 if pts else len(norms))
    for node in one_scale:
        incoming, outgoing = calibration.uniform_grid(node.inputs[0]), calibration.uniform_grid(node.name)
        source = next(name for name in _sources(graph, node.inputs[0]) if name in codes)
        centred = codes[source].reshape(-1, len(node.parameters["weight"])) - incoming.zero_point
        alpha = np.zeros(centred.shape[1], np.int64)
        integer = int_layernorm(
            centred, alpha, incoming.scale, node.parameters["weight"], node.parameters["bias"], outgoing.scale
        )
        expected = np.clip(integer + outgoing.zero_point, 0, outgoing.highest)
        assert np.array_equal(codes[node.name].reshape(expected.shape), expected) == pts, node.name


def test_noise_is_seeded_and_moves_few_codes(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """A relative 1e-4 flips roundings of the first sum by one step; without noise nothing moves."""
    calibration, _ = quantize_small(small_graph, small_images, "8/8/8")
    found: list[dict[str, np.ndarray]] = []
    for noise, seed in ((0.0, 0), (0.0, 5), (1e-4, 0), (1e-4, 0), (1e-4, 5)):
        found.append({})
        FakeQuantNetwork(calibration, noise=noise, seed=seed).run(small_images, found[-1])
    plain, silent, noisy, again, other = (codes["pos_add"] for codes in found)
    assert np.array_equal(silent, plain)
    assert np.array_equal(noisy, again)
    assert not np.array_equal(noisy, other)
    assert np.abs(noisy - plain).max() == 1
    assert 0 < (noisy != plain).mean() < 0.05


def _sources(graph: FloatGraph, name: str) -> Iterator[str]:
    """A node and what its values were before data movement."""
    while True:
        yield name
        name = graph[name].inputs[0]
