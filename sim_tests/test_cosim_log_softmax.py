"""Log-Int-Softmax: the exported Verilog in Verilator against golden, at full rate and with stalls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from golden.log_softmax import LogSoftmaxSpec, exponential_constants, lossless_fraction_bits
from golden.vectors import UnitVectors
from sim_tests.cosim import cosimulate


def layer(scale: float, length: int, bits: int = 8) -> UnitVectors:
    """Attention-like scores of two images: 3 heads, 40 rows, each with a spread of its own, and corner rows."""
    constants = exponential_constants(scale)
    spec = LogSoftmaxSpec(
        score_bits=bits,
        code_bits=4,
        fraction_bits=lossless_fraction_bits(int(constants["x0"]), bits),
        row_length=length,
        polynomial_bits=int(constants["c"]).bit_length(),
    )
    random = np.random.default_rng(length)
    top = spec.input.maximum
    scores = np.clip(random.normal(top / 2, random.choice([2, 20, 100], (2, 3, 40, 1)), (2, 3, 40, length)), 0, top)
    scores[0, 0, 0] = 0
    scores[0, 0, 1] = top
    scores[0, 0, 2] = np.arange(length) * top // max(length - 1, 1)
    scores[0, 0, 3, : length // 2] = 0
    scores[0, 0, 3, length // 2 :] = top
    codes = scores.round().astype(spec.input.dtype)
    return UnitVectors(
        spec=spec,
        constants=constants,
        inputs=(codes,),
        output=spec.compute(constants, codes),
        accumulator=None,
        network="random scores",
        recipe="none",
        layer=f"softmax of {length}",
        images=(0, 1),
    )


@pytest.fixture(scope="module")
def layers() -> list[UnitVectors]:
    return [layer(0.05, 50), layer(0.02, 197), layer(0.4, 9), layer(0.05, 1)]


@pytest.fixture(scope="module")
def build_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished simulators, one for each number of lanes."""
    return tmp_path_factory.mktemp("log_softmax")


@pytest.mark.parametrize("stall_seed", [None, 5])
@pytest.mark.parametrize("lanes", [1, 4])
def test_every_code_of_layers_that_share_a_unit(
    layers: list[UnitVectors], lanes: int, stall_seed: int | None, build_dir: Path
) -> None:
    results = cosimulate(layers, lanes=lanes, build_dir=build_dir, stall_seed=stall_seed)
    for vectors, result in zip(layers, results, strict=True):
        assert result.mismatches == 0, result.first_mismatch
        assert result.compared == vectors.output.size
        if stall_seed is None:
            assert result.cycles_per_row == -(-vectors.output.shape[-1] // lanes)


def test_one_wrong_code_is_found(layers: list[UnitVectors], build_dir: Path) -> None:
    output = layers[1].output.copy()
    output[1, 2, 30, 7] ^= 1
    wrong = [layers[0], replace(layers[1], output=output), *layers[2:]]
    results = cosimulate(wrong, lanes=1, build_dir=build_dir, waveform=False)
    assert [result.mismatches for result in results] == [0, 1, 0, 0]
    assert results[1].first_mismatch is not None
    assert (results[1].first_mismatch.row, results[1].first_mismatch.element) == (2 * 40 + 30, 7)
