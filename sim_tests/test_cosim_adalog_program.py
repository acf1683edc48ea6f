"""A calibrated AdaLog program in Verilator: a block of the embedded network at 3 and 4 bits, with few rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from golden.vectors import UnitVectors
from hwsim.cli.hardware import hardware_nodes
from hwsim.unit_vectors import unit_vectors
from sim_tests.cosim import cosimulate

pytest.importorskip("timm")
# The decoder that belongs to a product has a test of its own.
KINDS = ("adalog_quantize", "adalog_matmul", "lookup")
# Of each layer.
ROWS = 3
LANES = 4


@pytest.fixture(scope="module", params=[3, 4])
def block(request: pytest.FixtureRequest) -> list[UnitVectors]:
    """Layers of block 2 on one test image, as `hwsim cosim` plays them, calibrated by a short search."""
    from hwsim.dump import dump_vectors
    from hwsim.networks.embedded import load_calibration_set, load_test_set
    from hwsim.networks.load import load_network
    from hwsim.quantize.adalog import adalog
    from hwsim.quantize.calibrate import calibrate
    from hwsim.quantize.lowering import lower
    from hwsim.quantize.search.settings import PairSearch

    bits = "/".join(3 * [str(request.param)])
    short = PairSearch(candidates=32, beam=3, gelu_beam=3, steps=1, rounds=1, values=1 << 14)
    recipe = replace(adalog(bits), search=short)
    program = lower(calibrate(load_network("embedded"), load_calibration_set().head(4).images, recipe))
    nodes = hardware_nodes(program, ["blocks.2"], KINDS)
    played = unit_vectors(dump_vectors(program, load_test_set().head(1).images, [0], nodes))
    return [vectors for vectors in played if vectors.spec.kind in KINDS]


def few_rows(vectors: UnitVectors) -> UnitVectors:
    """The first rows of what the first operand has, the second operand whole."""
    first, *others = (array[..., :ROWS, :] if index == 0 else array for index, array in enumerate(vectors.inputs))
    sums = None if vectors.accumulator is None else vectors.accumulator[..., :ROWS, :]
    return replace(vectors, inputs=(first, *others), output=vectors.output[..., :ROWS, :], accumulator=sums)


def test_a_block_of_a_calibrated_program(block: list[UnitVectors], build_dir: Path) -> None:
    layers = [vectors.layer.removeprefix("blocks.2.") for vectors in block]
    heads = [f"attn.context.head{head}" for head in range(4)]
    assert layers == ["attn.softmax", *heads, "mlp.gelu", "mlp.fc2"]
    assert {vectors.spec.kind for vectors in block} == set(KINDS)
    # Codes that a short search found are in use, several of them and the zero symbol too.
    assert len(np.unique(block[0].output)) > 4 and len(np.unique(block[5].output)) > 4
    played = [few_rows(vectors) for vectors in block]
    results = cosimulate(played, lanes=LANES, build_dir=build_dir, waveform=False)
    for vectors, result in zip(played, results, strict=True):
        assert result.mismatches == 0, (vectors.layer, result.first_mismatch)
        assert result.compared >= vectors.output.size > 0
    # A wrong weight of the last layer shows in its sums.
    product = played[-1]
    weights = product.inputs[1].copy()
    weights[..., 0, :] ^= 1
    wrong = replace(product, inputs=(product.inputs[0], weights))
    (found,) = cosimulate([wrong], lanes=LANES, build_dir=build_dir, waveform=False)
    assert found.mismatches > 0
