"""AdaLog products of whole layers in Verilator: a grid a head, and a linear layer on shifted GELU codes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from golden.adalog import AdaLogMatmulSpec, adalog_tables
from golden.adalog_linear import AdaLogLinearSpec
from golden.requantize import RequantizeSpec
from golden.spec import IntFormat
from golden.vectors import UnitVectors
from hwsim.unit_vectors import unit_vectors
from sim_tests.cosim import cosimulate

BITS, LANES = 3, 4


def requantizer(channels: int) -> RequantizeSpec:
    return RequantizeSpec(
        input=IntFormat(40, signed=True), output_bits=8, multiplier_bits=16, shift_bits=6, channels=channels
    )


def layers() -> list[UnitVectors]:
    """Three-bit attention times values of two heads, and a linear layer; q 20 loses nothing, q 137 is cut."""
    random = np.random.default_rng(3)
    shared = {"network": "random", "recipe": "none", "images": (0, 4)}
    found = []
    for q, guard_bits in ((20, 3), (137, 6)):
        shift, mantissa = adalog_tables(BITS, q)
        tables = {"shift_table": shift, "mantissa_table": mantissa, "zero_point": np.array(9)}
        fields = {"code_bits": BITS, "guard_bits": guard_bits, "largest_shift": 40}
        product = AdaLogMatmulSpec(value_bits=4, row_length=9, heads=2, requantize=requantizer(2), **fields)
        constants = {**tables, "zero_v": np.array([3, 14]), "multiplier": np.array([9, 7]), "shift": np.array([8, 9])}
        inputs = random.integers(0, 9, (2, 2, 5, 9)), random.integers(0, 16, (2, 2, 9, 6))
        found.append(vectors_of(product, constants, inputs, f"context {q}", shared))
        linear = AdaLogLinearSpec(
            input_features=21, output_features=7, weight_bits=BITS, bias_bits=30, requantize=requantizer(7), **fields
        )
        constants = {
            **tables,
            "multiplier": np.arange(1, 8),
            "shift": np.full(7, 6),
            "bias": random.integers(-900, 900, 7),
        }
        constants |= {"weight": random.integers(0, 8, (7, 21)), "zero_weight": random.integers(0, 8, 7)}
        found.append(vectors_of(linear, constants, (random.integers(0, 9, (2, 6, 21)),), f"fc2 {q}", shared))
    return found


def vectors_of(spec, constants, inputs, layer, shared) -> UnitVectors:  # type: ignore[no-untyped-def]
    checked = spec.check_constants(constants)
    output, sums = spec.compute(checked, *inputs), spec.accumulate(checked, *inputs)
    return UnitVectors(spec, checked, inputs, output, sums, layer=layer, **shared)


@pytest.mark.parametrize("stall_seed", [None, 5])
def test_heads_and_linear_layers_run_on_the_product_unit(stall_seed: int | None, build_dir: Path) -> None:
    seen = list(unit_vectors(layers()))
    kinds = [vectors.spec.kind for vectors in seen]
    assert kinds == ["adalog_matmul"] * 3 + ["adalog_decode"] + ["adalog_matmul"] * 3 + ["adalog_decode"]
    for result in cosimulate(seen, lanes=LANES, build_dir=build_dir, stall_seed=stall_seed):
        assert result.mismatches == 0, result.first_mismatch
        assert result.compared > 0


def test_one_wrong_sum_of_a_linear_layer_is_found(build_dir: Path) -> None:
    seen = [vectors for vectors in unit_vectors(layers()) if vectors.spec.kind == "adalog_matmul"]
    product = seen[2]
    assert product.layer == "fc2 20"
    assert product.accumulator is not None
    sums = product.accumulator.copy()
    sums[1, 4, 2] ^= 1
    seen[2] = replace(product, accumulator=sums)
    results = cosimulate(seen, lanes=LANES, build_dir=build_dir, waveform=False)
    assert [result.mismatches for result in results] == [0, 0, 1, 0, 0, 0]
    first = results[2].first_mismatch
    assert first is not None
    assert (first.image, first.element) == (4, 2)
