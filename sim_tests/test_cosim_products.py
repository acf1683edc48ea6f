"""Matrix products on logarithmic codes, and the requantization of their sums, in Verilator against golden."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golden.adalog import AdaLogMatmulSpec, adalog_tables
from golden.log2_matmul import Log2MatmulSpec
from golden.log_softmax import LogSoftmaxSpec, exponential_constants
from golden.requantize import RequantizeSpec
from golden.spec import IntFormat, Spec
from golden.vectors import UnitVectors
from sim_tests.cosim import cosimulate

SCALING = {"multiplier": np.array([40001]), "shift": np.array([30]), "zero_point": np.array(117)}


def requantizer(bits: int) -> RequantizeSpec:
    return RequantizeSpec(
        input=IntFormat(bits, signed=True), output_bits=8, multiplier_bits=16, shift_bits=6, channels=1
    )


def vectors_of(spec: Spec, constants: dict[str, np.ndarray], *inputs: np.ndarray, layer: str) -> UnitVectors:
    checked = spec.check_constants(constants)
    accumulate = getattr(spec, "accumulate", None)
    return UnitVectors(
        spec=spec,
        constants=checked,
        inputs=inputs,
        output=spec.compute(checked, *inputs),
        accumulator=None if accumulate is None else accumulate(checked, *inputs),
        network="random",
        recipe="none",
        layer=layer,
        images=(3, 8),
    )


def log2_layer(zero_v: int, rows: int, length: int, columns: int) -> UnitVectors:
    """Codes of a softmax of random scores, so that the width of the sums is the proven one."""
    random = np.random.default_rng(length)
    constants = exponential_constants(0.1)
    softmax = LogSoftmaxSpec(score_bits=8, code_bits=4, fraction_bits=20, row_length=length, polynomial_bits=9)
    scores = random.integers(0, 256, (2, 3, rows, length)) >> random.integers(0, 5, (2, 3, rows, 1))
    codes = softmax.compute(softmax.check_constants(constants), scores)
    values = random.choice([0, 1, 100, 254, 255], (2, 3, length, columns))
    spec = Log2MatmulSpec(code_bits=4, value_bits=8, row_length=length, requantize=requantizer(25))
    return vectors_of(spec, {"zero_v": np.array(zero_v), **SCALING}, codes, values, layer=f"log2 of {length}")


def adalog_layer(zero_v: int, q: int, guard_bits: int, rows: int, length: int, columns: int) -> UnitVectors:
    random = np.random.default_rng(q)
    shift, mantissa = adalog_tables(4, q)
    spec = AdaLogMatmulSpec(
        code_bits=4,
        value_bits=8,
        row_length=length,
        guard_bits=guard_bits,
        largest_shift=63,
        requantize=requantizer(40),
    )
    constants = {"zero_v": np.array(zero_v), "shift_table": shift, "mantissa_table": mantissa, **SCALING}
    codes, values = random.integers(0, 17, (2, 3, rows, length)), random.integers(0, 256, (2, 3, length, columns))
    return vectors_of(spec, constants, codes, values, layer=f"adalog of q {q}")


def requantize_layer(channels: int, bits: int) -> UnitVectors:
    random = np.random.default_rng(channels)
    scale = np.exp2(random.uniform(0, bits, (2, 20, 12)))
    accumulators = np.clip(random.normal(0, 1, (2, 20, 12)) * scale, -(1 << bits - 1), (1 << bits - 1) - 1)
    constants = {
        "multiplier": random.integers(0, 1 << 16, channels),
        "shift": random.integers(8, 40, channels),
        "zero_point": np.array(100),
    }
    spec = replace(requantizer(bits), channels=channels)
    return vectors_of(spec, constants, accumulators.astype(np.int64), layer=f"requantize {channels} channels")


LAYERS = {
    "log2_matmul": [log2_layer(120, 9, 50, 16), log2_layer(255, 4, 7, 5)],
    "adalog_matmul": [adalog_layer(120, 20, 8, 6, 50, 8), adalog_layer(-9, 137, 2, 4, 9, 5)],
    "requantize": [requantize_layer(12, 25), requantize_layer(1, 31)],
}


def cycles_of_a_row(kind: str, layer: UnitVectors, lanes: int) -> int:
    length = layer.inputs[0].shape[-1]
    return -(-length // lanes) if kind == "requantize" else length


@pytest.mark.parametrize("stall_seed", [None, 4])
@pytest.mark.parametrize(("kind", "lanes"), [("log2_matmul", 4), ("adalog_matmul", 3), ("requantize", 2)])
def test_every_sum_and_code(kind: str, lanes: int, stall_seed: int | None, build_dir: Path) -> None:
    layers = LAYERS[kind]
    results = cosimulate(layers, lanes=lanes, build_dir=build_dir, stall_seed=stall_seed)
    for layer, result in zip(layers, results, strict=True):
        assert result.mismatches == 0, result.first_mismatch
        *rest, columns = layer.output.shape
        tiles = columns if kind == "requantize" else -(-columns // lanes) * lanes
        assert result.compared == int(np.prod(rest)) * tiles
        if stall_seed is None:
            assert result.cycles_per_row == cycles_of_a_row(kind, layer, lanes)


def one_bit_wrong(layer: UnitVectors, place: tuple[int, ...]) -> UnitVectors:
    field = "output" if layer.accumulator is None else "accumulator"
    changed: Any = getattr(layer, field).copy()
    changed[place] ^= 1
    return replace(layer, **{field: changed})


@pytest.mark.parametrize("kind", ["log2_matmul", "requantize"])
def test_one_wrong_bit_is_found(kind: str, build_dir: Path) -> None:
    lanes = {"log2_matmul": 4, "requantize": 2}[kind]
    first, second = LAYERS[kind]
    place = (1, 2, 3, 9) if kind == "log2_matmul" else (1, 17, 9)
    layers = [one_bit_wrong(first, place), second]
    wrong, right = cosimulate(layers, lanes=lanes, build_dir=build_dir, waveform=False)
    assert (wrong.mismatches, right.mismatches) == (1, 0)
    found = wrong.first_mismatch
    assert found is not None
    # Of a product: head 2, the third four columns, row 3, and in them column 9.
    row, element = ((2 * 4 + 2) * 9 + 3, 1) if kind == "log2_matmul" else (17, 9)
    assert (found.image, found.row, found.element) == (8, row, element)
