"""Cosimulation: every dumped activation through the exported Verilog, compared to the last bit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from golden.vectors import UnitVectors
from rtl import axi, catalog, verilog
from rtl.stream import StreamUnit
from sim_tests.beats import beats_of, words_of
from sim_tests.build import build_simulator
from sim_tests.compare import Expected, Mismatch, compare
from sim_tests.simulate import BeatBits, Outcome, Play, Played, simulate
from sim_tests.toolchain import Toolchain, find_toolchain

# Cycles of waveform kept before and after a mismatch.
BEFORE, AFTER = 200, 50


@dataclass(frozen=True)
class CosimResult:
    """One layer.

    Attributes
    ----------
    unit, layer : str
    compared : int
        Activations that the hardware had to give, all compared.
    mismatches : int
        Activations that differ or did not come, and broken rules of the stream.
    rows : int
    cycles : int
        From the first beat taken to the last one given.
    cycles_per_row : float
        Sustained: between the ends of the first and the last row.
    first_mismatch : Mismatch or None
    waveform : Path or None
        VCD of the neighbourhood of the first mismatch of this build.
    verilog : Path
        The text that was simulated.
    stall_seed : int or None
    """

    unit: str
    layer: str
    compared: int
    mismatches: int
    rows: int
    cycles: int
    cycles_per_row: float
    first_mismatch: Mismatch | None
    waveform: Path | None
    verilog: Path
    stall_seed: int | None


def cosimulate(
    vectors: Sequence[UnitVectors],
    *,
    lanes: int | Mapping[str, int],
    build_dir: Path,
    stall_seed: int | None = None,
    waveform: bool = True,
    max_workers: int | None = None,
) -> list[CosimResult]:
    """Run layers through hardware and compare every output element.

    Layers that one unit can serve share one build, their constants loaded one after the other.

    Parameters
    ----------
    vectors : sequence of UnitVectors
    lanes : int or mapping of kind to int
    build_dir : Path
        Keeps the Verilog, finished simulators and waveforms.
    stall_seed : int, optional
        Stalls both sides at random; without it both run at full rate.
    waveform : bool
        Leave a waveform of the neighbourhood of the first mismatch of a build.
    max_workers : int, optional
        Units that are built and run at the same time, by default one a processor.

    Returns
    -------
    list of CosimResult
        In the order of `vectors`.

    Raises
    ------
    HwsimError
        No hardware of a kind, or a tool is missing or fails.
    """
    tools = find_toolchain()
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, layer in enumerate(vectors):
        groups.setdefault(catalog.group_key(layer.spec), []).append(place)
    names = _module_names(list(groups))

    def run(key: tuple[object, ...]) -> list[CosimResult]:
        layers = [vectors[place] for place in groups[key]]
        kind = layers[0].spec.kind
        width = lanes if isinstance(lanes, int) else lanes[kind]
        unit = catalog.covering([(layer.spec, layer.constants) for layer in layers], lanes=width)
        return _Cosimulation(unit, names[key], layers, Path(build_dir).absolute(), tools).run(stall_seed, waveform)

    with ThreadPoolExecutor(max_workers or os.cpu_count()) as pool:
        found = list(pool.map(run, groups))
    results = {
        place: result
        for key, part in zip(groups, found, strict=True)
        for place, result in zip(groups[key], part, strict=True)
    }
    return [results[place] for place in range(len(vectors))]


def _module_names(keys: Sequence[tuple[object, ...]]) -> dict[tuple[object, ...], str]:
    """The kind as module name, numbered where a kind needs several units."""
    kinds = [str(key[0]) for key in keys]
    return {
        key: kind if kinds.count(kind) == 1 else f"{kind}_{kinds[:place].count(kind) + 1}"
        for place, (key, kind) in enumerate(zip(keys, kinds, strict=True))
    }


class _Cosimulation:
    """One unit and the layers that it serves."""

    def __init__(self, unit: StreamUnit, name: str, layers: Sequence[UnitVectors], build_dir: Path, tools: Toolchain):
        self.unit, self.name, self.layers, self.build_dir, self.tools = unit, name, layers, build_dir, tools
        self.verilog = verilog.export(unit, name)
        self.element = axi.element_of(unit.o.payload)
        dice = np.random.default_rng(0)
        self.expected: list[Expected] = []
        self.plays: list[Play] = []
        for layer in layers:
            rows = catalog.entry(layer.spec.kind).rows(unit, layer)
            beats = beats_of(axi.element_of(unit.i.payload), len(unit.i.payload.keep), rows.inputs, padding=dice)
            expected = Expected(beats_of(self.element, len(unit.o.payload.keep), [rows.output]), *rows.output.shape[:2])
            if unit.loadable:
                port = unit.w.payload
                words = words_of(unit.writes(layer.spec, layer.constants), len(port.address), len(port.data))
            else:
                words = np.zeros((0, 1), np.uint8)
            self.expected.append(expected)
            self.plays.append(Play(words, beats.packed(), len(expected.beats.last)))
        widths = {port.name: port.width // 8 for port in axi.ports(unit)}
        self.bits = BeatBits(widths["s_axis_tdata"], widths["m_axis_tdata"], widths.get("s_axis_write_tdata", 1))

    def simulator(self, waveform: bool) -> Path:
        defines = ["LOADABLE"] if self.unit.loadable else []
        return build_simulator(
            self.verilog,
            self.name,
            self.bits.bench_parameters,
            defines,
            build_dir=self.build_dir,
            tools=self.tools,
            waveform=waveform,
        )

    def run(self, stall_seed: int | None, waveform: bool) -> list[CosimResult]:
        simulator = self.simulator(waveform=False)
        outcome, _ = simulate(simulator, self.bits, self.plays, stall_seed=stall_seed, tools=self.tools)
        results = [
            self._compare(number, outcome, simulator / f"{self.name}.v", stall_seed)
            for number in range(len(self.layers))
        ]
        wrong = next((number for number, result in enumerate(results) if result.first_mismatch is not None), None)
        if waveform and wrong is not None:
            mismatch = results[wrong].first_mismatch
            assert mismatch is not None
            path = self._record(mismatch.cycle, stall_seed)
            results[wrong] = replace(results[wrong], waveform=path)
        return results

    def _record(self, cycle: int, stall_seed: int | None) -> Path:
        """Waveform of the neighbourhood of a cycle."""
        around = (max(cycle - BEFORE, 0), cycle + AFTER)
        _, path = simulate(
            self.simulator(waveform=True),
            self.bits,
            self.plays,
            stall_seed=stall_seed,
            tools=self.tools,
            waveform=around,
        )
        assert path is not None
        kept = self.build_dir / f"{self.name}-cycle-{cycle}.vcd"
        os.replace(path, kept)
        return kept

    def _compare(self, number: int, outcome: Outcome, text: Path, stall_seed: int | None) -> CosimResult:
        layer, expected = self.layers[number], self.expected[number]
        reached = number < len(outcome.layers)
        played = outcome.layers[number] if reached else Played.nothing(self.bits.out_bits)
        starts = [int(layer.taken_at[0]) if len(layer.taken_at) else 0 for layer in outcome.layers] + [outcome.cycles]
        unstable = [cycle for cycle in outcome.unstable if reached and starts[number] <= cycle < starts[number + 1]]
        mismatches, first = compare(layer, self.element, expected, played, unstable, outcome.cycles)
        ends = played.given_at[expected.beats_per_row - 1 :: expected.beats_per_row][: expected.rows]
        cycles = (
            int(played.given_at[-1] - played.taken_at[0] + 1) if len(played.given_at) and len(played.taken_at) else 0
        )
        return CosimResult(
            unit=layer.spec.kind,
            layer=layer.layer,
            compared=int(expected.beats.keep.sum()),
            mismatches=mismatches,
            rows=expected.rows,
            cycles=cycles,
            cycles_per_row=float(ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else float(cycles),
            first_mismatch=first,
            waveform=None,
            verilog=text,
            stall_seed=stall_seed,
        )
