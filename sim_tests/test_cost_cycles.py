"""Cycles that the cost model gives for the layers of a unit are those that Verilator counts, exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rtl import catalog
from rtl.allocation import Layer, allocate, row_cycles
from sim_tests.compare import Expected
from sim_tests.cosim import Cosimulation, device_of
from sim_tests.simulate import Play
from sim_tests.test_protocol import KINDS, LANES, stimulus_of
from sim_tests.toolchain import find_toolchain
from sim_tests.unit_examples import LONGEST, Example, example

# Rows and their length; a LayerNorm's have as many elements as it has channels.
ROWS = [(1, 1), (1, LONGEST), (9, LONGEST), (5, 8), (7, 1), (3, LONGEST - 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_cycles_of_whole_layers(kind: str, build_dir: Path) -> None:
    dice = np.random.default_rng(sum(kind.encode()))
    # Those of the stream contract, so that both tests share one simulator.
    layers = [example(kind, seed) for seed in range(2)]
    unit = catalog.covering([(layer.spec, layer.constants) for layer in layers], lanes=LANES)
    shapes = [(rows, LONGEST) for rows, _ in ROWS] if kind == "layernorm" else ROWS
    played: list[Example] = []
    stimuli: list[tuple[Play, Expected]] = []
    for step, (rows, length) in enumerate(shapes):
        layer = layers[step % 2]
        one = layer.rows(rows, length, LANES, dice)
        played.append(layer)
        stimuli.append(stimulus_of(unit, layer, [one], dice))
    device = device_of(unit, f"{kind}_contract")
    results = Cosimulation(device, played, stimuli, build_dir, find_toolchain()).run(None, waveform=False)
    assert [result.mismatches for result in results] == [0] * len(shapes)
    assert [result.cycles for result in results] == [row_cycles(unit, rows, length) for rows, length in shapes]


def test_a_layer_takes_what_its_rows_take() -> None:
    """Rows of a product: for each matrix and each `lanes` columns of V a row of codes."""
    codes = example("log2_matmul")
    layer = Layer("context", codes.spec, codes.constants, ((3, 10, LONGEST), (3, LONGEST, 5)))
    (unit,) = allocate([layer], lambda kind: LANES)
    # 3 matrices of 10 rows, 5 columns on 2 lanes: 3 * 10 * 3 rows of LONGEST codes.
    assert unit.cycles(layer) == 90 * LONGEST + unit.unit.latency
    assert unit.latency(layer) == unit.unit.latency
