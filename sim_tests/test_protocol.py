"""The stream contract of every unit, in Verilator: lengths that differ, resets within rows, constants that change.

One simulation a unit and pace plays it all; the scoreboard compares every element, its ``tkeep`` and
``tlast``, and that a beat stays until it is taken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from rtl import axi, catalog
from rtl.catalog import Rows
from rtl.stream import StreamUnit
from sim_tests.beats import Beats, beats_of, words_of
from sim_tests.compare import Expected
from sim_tests.cosim import CosimResult, Cosimulation, Device, device_of
from sim_tests.simulate import Play
from sim_tests.toolchain import find_toolchain
from sim_tests.unit_examples import LONGEST, Example, example

LANES = 2
KINDS = sorted(catalog.UNITS)
# Rows of one element, of half a beat more or less than another, and the longest, back to back.
LENGTHS = [LONGEST, 1, 1, 2, LONGEST, 3, LONGEST - 1, 8, 1, LONGEST]
RESETS = 6


@dataclass(frozen=True)
class Contract:
    """What is played on one unit."""

    unit: StreamUnit
    layers: list[Example]
    stimuli: list[tuple[Play, Expected]]


def joined(parts: Sequence[Beats]) -> Beats:
    """Beats one after the other."""
    return Beats(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("data", "keep", "last")))


def stimulus_of(
    unit: StreamUnit, layer: Example, rows: Sequence[Rows], dice: np.random.Generator
) -> tuple[Play, Expected]:
    """Beats of rows of different lengths."""
    sides = [(axi.element_of(port.payload), len(port.payload.keep)) for port in (unit.i, unit.o)]
    sent = [beats_of(*sides[0], one.inputs, padding=dice) for one in rows]
    given = joined([beats_of(*sides[1], [part]) for one in rows for part in parts_of(layer, one.output)])
    words = words_of(unit.writes(layer.spec, layer.constants), len(unit.w.payload.address), len(unit.w.payload.data))
    return Play(words, joined(sent).packed(), len(given.last)), Expected(given, int(given.last.sum()))


def parts_of(layer: Example, row: np.ndarray) -> list[np.ndarray]:
    """A row as it comes out: the softmax ends one that is longer than built for."""
    if layer.spec.kind != "log_softmax":
        return [row]
    cut = -(-LONGEST // LANES) * LANES
    return [row[:, start : start + cut] for start in range(0, row.shape[1], cut)]


def row_of(layer: Example, length: int, lanes: int, dice: np.random.Generator) -> Rows:
    """A row of the example; of the softmax also one that is longer than built for, in parts of their own."""
    if layer.spec.kind != "log_softmax":
        return layer.rows(1, length, lanes, dice)
    cut = -(-LONGEST // LANES) * LANES
    parts = [layer.rows(1, min(cut, length - start), lanes, dice) for start in range(0, length, cut)]
    inputs = np.concatenate([part.inputs[0] for part in parts], axis=1)
    return Rows((inputs,), np.concatenate([part.output for part in parts], axis=1))


def mixed_rows(layer: Example, lanes: int, dice: np.random.Generator) -> list[Rows]:
    """Rows of `LENGTHS` in two random orders, and where it is defined of more elements than built for."""
    lengths = LENGTHS + [LONGEST + 7] * (layer.spec.kind in ("layernorm", "log_softmax"))
    return [row_of(layer, int(length), lanes, dice) for _ in range(2) for length in dice.permutation(lengths)]


def contract(kind: str) -> Contract:
    """Rows of all lengths; resets within a row, each after other constants were loaded; rows of all lengths again."""
    dice = np.random.default_rng(sum(kind.encode()))
    layers = [example(kind, seed) for seed in range(2)]
    unit = catalog.covering([(layer.spec, layer.constants) for layer in layers], lanes=LANES)
    order, stimuli = [], []
    for step in range(2 * RESETS + 2):
        layer = layers[(step // 2) % 2]
        play, expected = stimulus_of(unit, layer, mixed_rows(layer, LANES, dice), dice)
        if step % 2 and step < 2 * RESETS:
            play = replace(play, beats=play.beats[: dice.integers(1, len(play.beats))], reset=True)
        order.append(layer)
        stimuli.append((play, expected))
    return Contract(unit, order, stimuli)


def run(one: Contract, device: Device, build_dir: Path, stall_seed: int | None) -> list[CosimResult]:
    cosimulation = Cosimulation(device, one.layers, one.stimuli, build_dir, find_toolchain())
    return cosimulation.run(stall_seed, waveform=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_contract(kind: str, build_dir: Path) -> None:
    one = contract(kind)
    device = device_of(one.unit, f"{kind}_contract")
    for stall_seed in (None, 1):
        results = run(one, device, build_dir, stall_seed)
        assert [str(result.first_mismatch) for result in results if result.mismatches] == []
        whole = [result for result, (play, _) in zip(results, one.stimuli, strict=True) if not play.reset]
        cut = [result for result, (play, _) in zip(results, one.stimuli, strict=True) if play.reset]
        assert all(result.rows >= 2 * len(LENGTHS) for result in whole)
        # Resets found rows under way: not all that was asked for had come.
        assert len(cut) == RESETS
        assert any(0 < result.compared < whole[0].compared for result in cut)


# Of the shell below, by the number of resets it has seen: each breaks one rule, and then none is broken.
FAULTS = {
    "a row without its last beat": ("m_axis_tlast", "inner_last & (resets != 0)"),
    "a payload that changes under stall": (
        "m_axis_tdata",
        "inner_data ^ {{$bits(inner_data)-1{1'b0}}, resets == 1 && stalled}",
    ),
    "a valid that goes away": ("m_axis_tvalid", "inner_valid & !(resets == 2 && stalled)"),
    "an element too many": ("m_axis_tkeep", "inner_keep | {$bits(inner_keep){resets == 3}}"),
}


def with_faults(device: Device, outputs: dict[str, str], reset: str = "aresetn") -> Device:
    """The device inside a shell that gives other outputs."""
    head = re.search(rf"module {device.module} \((.*?)\);", device.verilog, re.DOTALL)
    assert head is not None
    ports = re.findall(r"(input|output)\s+(?:wire|reg)\s+(\[\d+:0\] )?(\w+)", head[1])
    inner = {f"m_axis_t{name}": f"inner_{name}" for name in ("last", "data", "valid", "keep")}
    wires = inner | {"aresetn": f"({reset})", "m_axis_tready": "m_axis_tready & m_axis_tvalid"}
    header = ",\n".join(f"    {direction} wire {width}{name}" for direction, width, name in ports)
    connections = ",\n".join(f"        .{name}({wires.get(name, name)})" for _, _, name in ports)
    shell = [
        f"module {device.module} (\n{header}\n);",
        *(f"    wire {width}{inner[name]};" for _, width, name in ports if name in inner),
        "    reg stalled = 0, under_reset = 1;",
        "    reg [3:0] resets = 0;",
        "    always @(posedge aclk) begin",
        "        under_reset <= !aresetn;",
        "        if (!aresetn && !under_reset) resets <= resets + 4'd1;",
        "        stalled <= aresetn & !stalled & inner_valid & !m_axis_tready;",
        "    end",
        *(f"    assign {name} = {outputs.get(name, wire)};" for name, wire in inner.items()),
        f"    {device.module}_inner inner (\n{connections}\n    );",
        "endmodule\n",
    ]
    text = device.verilog.replace(f"module {device.module} (", f"module {device.module}_inner (")
    return replace(device, verilog="\n".join([text, *shell]))


def test_every_broken_rule_is_found(build_dir: Path) -> None:
    one = contract("lookup")
    device = with_faults(device_of(one.unit, "lookup_faults"), dict(FAULTS.values()))
    wrong = [result.mismatches > 0 for result in run(one, device, build_dir, stall_seed=1)]
    # Steps 0, 2, 4 and 6 are whole; step n comes after n // 2 resets.
    assert wrong[: 2 * len(FAULTS) : 2] == [True] * len(FAULTS)
    assert not any(wrong[2 * len(FAULTS) :])


def test_a_reset_that_is_not_obeyed_is_found(build_dir: Path) -> None:
    """Of a unit that sums: what was under way comes into the next row."""
    one = contract("log2_matmul")
    device = with_faults(device_of(one.unit, "log2_matmul_faults"), {}, reset="aresetn | (resets != 0)")
    wrong = [result.mismatches > 0 for result in run(one, device, build_dir, stall_seed=1)]
    assert not any(wrong[:3])  # the first reset is obeyed
    assert any(wrong[3:])
