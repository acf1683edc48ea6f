"""Cosimulation: every dumped activation through the exported Verilog, compared to the last bit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from amaranth.hdl import ShapeLike

from golden.vectors import UnitVectors
from rtl import axi, catalog, verilog
from rtl.stream import StreamUnit
from sim_tests.build import build_simulator
from sim_tests.compare import Expected, Mismatch, Origin, compare
from sim_tests.simulate import BeatBits, Outcome, Play, Played, record, simulate
from sim_tests.stimulus import beat_bits, stimulus
from sim_tests.toolchain import Toolchain, find_toolchain
from sim_tests.waveform import CLOCK_PERIOD_PS, groups, write_views

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
    begin : int
        Cycle of its build in which the first beat was taken.
    cycles : int
        From the first beat taken to the last one given.
    cycles_per_row : float
        Sustained: between the ends of the first and the last row.
    first_mismatch : Mismatch or None
    waveform : Path or None
        FST or VCD of the neighbourhood of the first mismatch of this build, or of `waveform_at`; view
        files of GTKWave (``.gtkw``) and Surfer (``.sucl``) lie beside it.
    verilog : Path
        The text that was simulated.
    stall_seed : int or None
    """

    unit: str
    layer: str
    compared: int
    mismatches: int
    rows: int
    begin: int
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
    waveform_at: int | None = None,
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
    waveform_at : int, optional
        Leave a waveform of the neighbourhood of this cycle of each build where there is no mismatch;
        its first layer has it.
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
    names = module_names(list(groups))

    def run(key: tuple[object, ...]) -> list[CosimResult]:
        layers = [vectors[place] for place in groups[key]]
        kind = layers[0].spec.kind
        width = lanes if isinstance(lanes, int) else lanes[kind]
        unit = catalog.covering([(layer.spec, layer.constants) for layer in layers], lanes=width)
        dice = np.random.default_rng(0)
        stimuli = [stimulus(unit, layer, dice) for layer in layers]
        cosimulation = Cosimulation(device_of(unit, names[key]), layers, stimuli, Path(build_dir).absolute(), tools)
        return cosimulation.run(stall_seed, waveform, waveform_at)

    with ThreadPoolExecutor(max_workers or os.cpu_count()) as pool:
        found = list(pool.map(run, groups))
    results = {
        place: result
        for key, part in zip(groups, found, strict=True)
        for place, result in zip(groups[key], part, strict=True)
    }
    return [results[place] for place in range(len(vectors))]


def module_names(keys: Sequence[tuple[object, ...]]) -> dict[tuple[object, ...], str]:
    """The kind as module name, numbered where a kind needs several units."""
    kinds = [str(key[0]) for key in keys]
    return {
        key: kind if kinds.count(kind) == 1 else f"{kind}_{kinds[:place].count(kind) + 1}"
        for place, (key, kind) in enumerate(zip(keys, kinds, strict=True))
    }


@dataclass(frozen=True)
class Device:
    """A Verilog module with the ports of `rtl.axi`, as it is simulated.

    Attributes
    ----------
    module, verilog : str
        Its name and text.
    element : ShapeLike
        Of an element of the output.
    bits : BeatBits
    defines : tuple of str
        Macros of ``bench.sv``: LOADABLE, ALWAYS_READY.
    foreign : mapping of str to str
        What the text needs and others wrote, see `sim_tests.build.build_simulator`.
    """

    module: str
    verilog: str
    element: ShapeLike
    bits: BeatBits
    defines: tuple[str, ...] = ()
    foreign: Mapping[str, str] = field(default_factory=dict)


def device_of(unit: StreamUnit, name: str) -> Device:
    """A unit of ours, exported as a module."""
    return Device(
        module=name,
        verilog=verilog.export(unit, name),
        element=axi.element_of(unit.o.payload),
        bits=beat_bits(unit),
        defines=("LOADABLE",) if unit.loadable else (),
    )


class Cosimulation:
    """One device and the layers that it serves, each with what it is sent and must give."""

    def __init__(
        self,
        device: Device,
        layers: Sequence[Origin],
        stimuli: Sequence[tuple[Play, Expected]],
        build_dir: Path,
        tools: Toolchain,
    ):
        self.device, self.layers, self.build_dir, self.tools = device, layers, build_dir, tools
        self.plays = [play for play, _ in stimuli]
        self.expected = [expected for _, expected in stimuli]
        self.data = [name for name in device.foreign if Path(name).suffix not in (".v", ".sv")]

    def simulator(self, waveform: bool) -> Path:
        """Folder of the built simulator."""
        return build_simulator(
            self.device.verilog,
            self.device.module,
            self.device.bits.bench_parameters,
            self.device.defines,
            build_dir=self.build_dir,
            tools=self.tools,
            waveform=waveform,
            foreign=self.device.foreign,
        )

    def run(self, stall_seed: int | None, waveform: bool, waveform_at: int | None = None) -> list[CosimResult]:
        """Play and compare all layers; see `cosimulate`."""
        simulator, bits = self.simulator(waveform=False), self.device.bits
        outcome = simulate(simulator, bits, self.plays, stall_seed=stall_seed, tools=self.tools, data=self.data)
        text = simulator / f"{self.device.module}.v"
        results = [self._compare(number, outcome, text, stall_seed) for number in range(len(self.layers))]
        wrong = next((number for number, result in enumerate(results) if result.first_mismatch is not None), None)
        if waveform and wrong is not None:
            mismatch = results[wrong].first_mismatch
            assert mismatch is not None
            path = self._record(mismatch.cycle, stall_seed)
            results[wrong] = replace(results[wrong], waveform=path)
        elif waveform_at is not None and wrong is None:
            results[0] = replace(results[0], waveform=self._record(waveform_at, stall_seed))
        return results

    def _record(self, cycle: int, stall_seed: int | None) -> Path:
        """Waveform of the neighbourhood of a cycle, and the files that show it."""
        bits, first = self.device.bits, max(cycle - BEFORE, 0)
        path, start = record(
            self.simulator(waveform=True),
            bits,
            self.plays,
            [expected.beats.packed() for expected in self.expected],
            (first, cycle + AFTER),
            stall_seed=stall_seed,
            tools=self.tools,
            data=self.data,
        )
        kept = self.build_dir / f"{self.device.module}-cycle-{cycle}{path.suffix}"
        os.replace(path, kept)
        signals = groups(bits.in_bytes, bits.out_bytes, "LOADABLE" in self.device.defines)
        # A cycle ends with the clock edge at which its values were recorded.
        write_views(kept, signals, start + (cycle - first) * CLOCK_PERIOD_PS - CLOCK_PERIOD_PS // 2)
        return kept

    def _compare(self, number: int, outcome: Outcome, text: Path, stall_seed: int | None) -> CosimResult:
        layer, expected = self.layers[number], self.expected[number]
        reached = number < len(outcome.layers)
        played = outcome.layers[number] if reached else Played.nothing(self.device.bits.out_bits)
        if self.plays[number].reset:  # what was inside did not come
            expected = expected.first(len(played.given_at))
        starts = [int(layer.taken_at[0]) if len(layer.taken_at) else 0 for layer in outcome.layers] + [outcome.cycles]
        unstable = [cycle for cycle in outcome.unstable if reached and starts[number] <= cycle < starts[number + 1]]
        mismatches, first = compare(layer, self.device.element, expected, played, unstable, outcome.cycles)
        ends = played.given_at[np.flatnonzero(expected.beats.last[: len(played.given_at)])]
        cycles = (
            int(played.given_at[-1] - played.taken_at[0] + 1) if len(played.given_at) and len(played.taken_at) else 0
        )
        return CosimResult(
            unit=layer.spec.kind,
            layer=layer.layer,
            compared=int(expected.beats.keep.sum()),
            mismatches=mismatches,
            rows=expected.rows,
            begin=int(played.taken_at[0]) if len(played.taken_at) else 0,
            cycles=cycles,
            cycles_per_row=float(ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else float(cycles),
            first_mismatch=first,
            waveform=None,
            verilog=text,
            stall_seed=stall_seed,
        )
