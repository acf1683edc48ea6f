"""Q-ViT's IRM in hardware: the LayerNorm unit on queries and keys of the embedded network, rows of 16 channels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from golden.layernorm import LayerNormSpec
from golden.vectors import UnitVectors
from sim_tests.bulk import cosimulate_bulk
from sim_tests.cosim import cosimulate

pytest.importorskip("timm")
LAYERS = ["blocks.0.attn.q_norm", "blocks.0.attn.k_norm", "blocks.5.attn.q_norm"]


@pytest.fixture(scope="module")
def rows() -> list[UnitVectors]:
    """Activations of two images, dumped from the network at 2 bits."""
    from hwsim.dump import dump_vectors
    from hwsim.networks.embedded import load_calibration_set, load_test_set
    from hwsim.networks.load import load_network
    from hwsim.quantize.calibrate import calibrate
    from hwsim.quantize.lowering import lower
    from hwsim.quantize.q_vit import q_vit

    images = load_calibration_set().head(8).images
    program = lower(calibrate(load_network("embedded"), images, q_vit("2/2/2")))
    return list(dump_vectors(program, load_test_set().head(2).images, [0, 1], [program[name] for name in LAYERS]))


@pytest.mark.parametrize("stall_seed", [None, 3])
def test_every_row_of_queries_and_keys(rows: list[UnitVectors], stall_seed: int | None, build_dir: Path) -> None:
    results = cosimulate(rows, lanes=1, build_dir=build_dir, stall_seed=stall_seed)
    for vectors, result in zip(rows, results, strict=True):
        spec = vectors.spec
        assert isinstance(spec, LayerNormSpec)
        assert (spec.channels, spec.output_bits) == (16, 2)
        assert result.mismatches == 0, result.first_mismatch
        assert result.compared == vectors.output.size == 2 * 4 * 50 * 16  # images, heads, tokens, channels
        if stall_seed is None:
            # The reciprocal square root takes longer than 16 elements.
            assert result.cycles_per_row == 19


def test_bulk_tier(rows: list[UnitVectors], build_dir: Path) -> None:
    results = cosimulate_bulk([rows], lanes=1, build_dir=build_dir, stall_seeds=[3])
    assert [result.mismatches for result in results] == [0] * len(rows)
    assert [result.compared for result in results] == [vectors.output.size for vectors in rows]


def test_one_wrong_bit_of_gamma_is_found(rows: list[UnitVectors], build_dir: Path) -> None:
    gamma = rows[1].constants["gamma"].copy()
    gamma[5] ^= 1 << 9
    wrong = [rows[0], replace(rows[1], constants={**rows[1].constants, "gamma": gamma}), rows[2]]
    results = cosimulate(wrong, lanes=1, build_dir=build_dir, waveform=False)
    assert [result.mismatches > 0 for result in results] == [False, True, False]
    assert results[1].first_mismatch is not None
    assert results[1].first_mismatch.element == 5
