"""The torch forms of the published procedures against `golden.published`, code by code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from golden.published import int_layernorm, log_int_softmax
from hwsim.networks.graph import FloatNode
from hwsim.quantize import softmax
from hwsim.quantize.fake_quant import _integer_layernorm
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


def test_integer_layernorm() -> None:
    rng = np.random.default_rng(4)
    channels = 48
    alpha = rng.integers(0, 4, channels)
    alpha[0] = 0
    incoming = PowerOfTwoGrid(float(np.float32(0.013)), alpha, 120, 8)
    outgoing = UniformGrid(float(np.float32(0.031)), 7, 8)
    gamma, beta = (rng.normal(0, 1, channels).astype(np.float32) for _ in range(2))
    gamma[5] = 0
    codes = rng.integers(0, 256, (300, channels))
    codes[7] = 120  # every value 0: no variance
    x = incoming.values(torch.from_numpy(codes).float())
    parameters = {"weight": torch.from_numpy(gamma), "bias": torch.from_numpy(beta)}
    node = FloatNode("n", "layernorm", parameters={"weight": gamma, "bias": beta}, attributes={"eps": 1e-6})
    y = _integer_layernorm(incoming, outgoing, node, parameters, [x]).double() / outgoing.scale
    expected = int_layernorm(codes - 120, alpha, incoming.base, gamma, beta, outgoing.scale)
    assert np.array_equal(np.rint(y.numpy()), expected)
