"""LayerNorm: the exported Verilog in Verilator against golden, at full rate and with stalls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from golden.layernorm import LayerNormSpec
from golden.vectors import UnitVectors
from sim_tests.cosim import cosimulate


def layer(channels: int, seed: int, **changes: int) -> UnitVectors:
    """Activations of two images, 40 rows each, every row with a spread of its own, and corner rows."""
    fields = {
        "channels": channels,
        "input_bits": 8,
        "output_bits": 8,
        "alpha_bits": 2,
        "mantissa_bits": 14,
        "radicand_bits": 16,
        "gamma_bits": 12,
        "beta_bits": 20,
    }
    spec = LayerNormSpec(**(fields | changes))
    random = np.random.default_rng(seed)
    fraction_bits = 5 + seed % 3
    gain = 1 << (spec.gamma_bits - 2)
    constants = spec.check_constants(
        {
            "zero_in": np.array(random.integers(90, 160)),
            "alpha": random.integers(0, 1 << spec.alpha_bits, channels),
            "gamma": random.integers(-gain, gain, channels),
            "beta": random.integers(100 << fraction_bits, 160 << fraction_bits, channels),
            "fraction_bits": np.array(fraction_bits),
        }
    )
    top = spec.input.maximum
    values = random.normal(top / 2, random.choice([0.5, 2, 20, 100], (2, 40, 1)), (2, 40, channels))
    codes = np.clip(values.round(), 0, top).astype(spec.input.dtype)
    codes[0, 0] = 0
    codes[0, 1] = top
    codes[0, 2, ::2], codes[0, 2, 1::2] = 0, top
    codes[0, 3], codes[0, 3, channels // 2] = 0, top
    return UnitVectors(
        spec=spec,
        constants=constants,
        inputs=(codes,),
        output=spec.compute(constants, codes),
        accumulator=None,
        network="random activations",
        recipe="none",
        layer=f"norm {seed} of {channels}",
        images=(0, 1),
    )


@pytest.fixture(scope="module")
def layers() -> list[UnitVectors]:
    return [layer(64, 0), layer(64, 1, gamma_bits=10), layer(64, 2, alpha_bits=0)]


@pytest.mark.parametrize("stall_seed", [None, 5])
@pytest.mark.parametrize(("lanes", "cycles"), [(1, 64), (2, 32)])
def test_every_code_of_layers_that_share_a_unit(
    layers: list[UnitVectors], lanes: int, cycles: int, stall_seed: int | None, build_dir: Path
) -> None:
    results = cosimulate(layers, lanes=lanes, build_dir=build_dir, stall_seed=stall_seed)
    for vectors, result in zip(layers, results, strict=True):
        assert result.mismatches == 0, result.first_mismatch
        assert result.compared == vectors.output.size
        if stall_seed is None:
            assert result.cycles_per_row == cycles


def test_one_wrong_code_is_found(layers: list[UnitVectors], build_dir: Path) -> None:
    output = layers[1].output.copy()
    output[1, 30, 7] ^= 1
    wrong = [layers[0], replace(layers[1], output=output), layers[2]]
    results = cosimulate(wrong, lanes=1, build_dir=build_dir, waveform=False)
    assert [result.mismatches for result in results] == [0, 1, 0]
    assert results[1].first_mismatch is not None
    found = results[1].first_mismatch
    assert (found.image, found.row, found.element) == (1, 30, 7)
