"""Log-sqrt2 products of whole layers in Verilator: a grid a head, and a linear layer on shifted GELU codes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golden.log_sqrt2 import LogSqrt2LinearSpec, LogSqrt2MatmulSpec
from golden.requantize import RequantizeSpec
from golden.spec import IntFormat
from golden.vectors import UnitVectors
from hwsim.unit_vectors import unit_vectors
from sim_tests.cosim import cosimulate

BITS, LANES = 3, 4


def requantizer(channels: int) -> RequantizeSpec:
    return RequantizeSpec(
        input=IntFormat(30, signed=True), output_bits=8, multiplier_bits=16, shift_bits=6, channels=channels
    )


def layers() -> list[UnitVectors]:
    """Three-bit codes times values of two heads, and a linear layer; without a guard bit terms are rounded down."""
    random = np.random.default_rng(3)
    found = []
    for guard_bits in (3, 0):
        fields = {"code_bits": BITS, "guard_bits": guard_bits}
        product = LogSqrt2MatmulSpec(value_bits=4, row_length=9, heads=2, requantize=requantizer(2), **fields)
        constants: dict[str, Any] = {
            "zero_v": [3, 14], "multiplier": [9, 7], "multiplier_odd": [6, 5], "shift": [8, 9], "zero_point": 9,
        }  # fmt: skip
        inputs = random.integers(0, 9, (2, 2, 5, 9)), random.integers(0, 16, (2, 2, 9, 6))
        found.append(vectors_of(product, constants, inputs, f"context {guard_bits}"))
        linear = LogSqrt2LinearSpec(
            input_features=21, output_features=7, weight_bits=BITS, bias_bits=20, requantize=requantizer(7), **fields
        )
        constants = {
            "multiplier": np.arange(1, 8),
            "multiplier_odd": np.arange(1, 8),
            "shift": np.full(7, 6),
            "zero_point": 9,
            "bias": random.integers(-900, 900, 7),
            "weight": random.integers(0, 8, (7, 21)),
            "zero_weight": random.integers(0, 8, 7),
        }
        found.append(vectors_of(linear, constants, (random.integers(0, 9, (2, 6, 21)),), f"fc2 {guard_bits}"))
    return found


def vectors_of(spec: Any, constants: dict[str, Any], inputs: tuple[np.ndarray, ...], layer: str) -> UnitVectors:
    checked = spec.check_constants({name: np.asarray(value) for name, value in constants.items()})
    output = spec.compute(checked, *inputs)
    return UnitVectors(spec, checked, inputs, output, None, "random", "none", layer, (0, 4))


@pytest.mark.parametrize("stall_seed", [None, 5])
def test_heads_and_linear_layers_run_on_the_sums_unit(stall_seed: int | None, build_dir: Path) -> None:
    seen = list(unit_vectors(layers()))
    assert [vectors.layer for vectors in seen] == [
        "context 3.head0", "context 3.head1", "fc2 3", "context 0.head0", "context 0.head1", "fc2 0",
    ]  # fmt: skip
    assert {vectors.spec.kind for vectors in seen} == {"log_sqrt2_sums"}
    for vectors, result in zip(
        seen, cosimulate(seen, lanes=LANES, build_dir=build_dir, stall_seed=stall_seed), strict=True
    ):
        assert result.mismatches == 0, result.first_mismatch
        images, rows, columns, sums = vectors.output.shape
        assert result.compared == images * rows * sums * -(-columns // LANES) * LANES
        if stall_seed is None:
            assert result.cycles_per_row == vectors.inputs[0].shape[-1]


@pytest.mark.parametrize("parity", [0, 1])
def test_one_wrong_sum_is_found(parity: int, build_dir: Path) -> None:
    seen = list(unit_vectors(layers()))
    assert seen[2].layer == "fc2 3"
    sums = seen[2].output.copy()
    sums[1, 4, 5, parity] ^= 1
    seen[2] = replace(seen[2], output=sums)
    results = cosimulate(seen, lanes=LANES, build_dir=build_dir, waveform=False)
    assert [result.mismatches for result in results] == [0, 0, 1, 0, 0, 0]
    first = results[2].first_mismatch
    assert first is not None
    # Column 5 is the second lane of the second pass, behind six rows of the first; odd sums come behind the even ones.
    assert (first.image, first.row, first.element) == (4, 6 + 4, 1 + LANES * parity)
