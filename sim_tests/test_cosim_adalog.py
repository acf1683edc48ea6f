"""AdaLog quantizer and decoder in Verilator against golden."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from golden.adalog import AdaLogDecodeSpec, AdaLogQuantizeSpec, adalog_tables, adalog_thresholds
from golden.spec import Spec
from golden.vectors import UnitVectors
from sim_tests.cosim import cosimulate


def vectors_of(spec: Spec, constants: dict[str, np.ndarray], values: np.ndarray, layer: str) -> UnitVectors:
    checked = spec.check_constants(constants)
    return UnitVectors(
        spec=spec,
        constants=checked,
        inputs=(values,),
        output=spec.compute(checked, values),
        accumulator=None,
        network="every value",
        recipe="none",
        layer=layer,
        images=(0, 1),
    )


def quantize_layer(q: int) -> UnitVectors:
    """All the probabilities of 16 bits, 1 included."""
    spec = AdaLogQuantizeSpec(input_bits=17, code_bits=4)
    values = np.minimum(np.arange(2 * 173 * 197), 1 << 16).reshape(2, 173, 197)
    return vectors_of(spec, {"thresholds": adalog_thresholds(4, q, Fraction(1 << 16))}, values, f"q {q}")


def decode_layer(q: int, guard_bits: int) -> UnitVectors:
    spec = AdaLogDecodeSpec(code_bits=4, guard_bits=guard_bits, largest_shift=63)
    shift, mantissa = adalog_tables(4, q)
    codes = np.arange(2 * 5 * 17).reshape(2, 5, 17) % 17
    return vectors_of(
        spec, {"shift_table": shift, "mantissa_table": mantissa}, codes, f"q {q}, {guard_bits} guard bits"
    )


LAYERS = {
    "adalog_quantize": [quantize_layer(q) for q in (10, 20, 137)],
    "adalog_decode": [decode_layer(q, guard_bits) for q, guard_bits in ((20, 8), (10, 2), (137, 12), (255, 0))],
}


@pytest.mark.parametrize("stall_seed", [None, 2])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_value(kind: str, stall_seed: int | None, build_dir: Path) -> None:
    layers = LAYERS[kind]
    results = cosimulate(layers, lanes=3, build_dir=build_dir, stall_seed=stall_seed)
    for layer, result in zip(layers, results, strict=True):
        assert result.mismatches == 0, result.first_mismatch
        assert result.compared == layer.output.size
        if stall_seed is None:
            assert result.cycles_per_row == -(-layer.output.shape[-1] // 3)
