"""The bulk tier: the units as shared libraries, millions of clock cycles a second, batch after batch of activations.

Stimulus and comparison are those of the protocol tier (`sim_tests.stimulus`, `sim_tests.compare`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from golden.vectors import UnitVectors
from rtl import axi, catalog, verilog
from rtl.stream import StreamUnit
from sim_tests.bulk_build import build_library
from sim_tests.bulk_model import BulkModel
from sim_tests.compare import Mismatch, compare
from sim_tests.cosim import module_names
from sim_tests.stimulus import beat_bits, stimulus
from sim_tests.toolchain import Toolchain, find_toolchain

GroupKey = tuple[object, ...]


@dataclass(frozen=True)
class BulkResult:
    """One layer over all batches.

    Attributes
    ----------
    unit, layer : str
    lanes : int
    images : int
    activations : int
        Elements that went in.
    compared : int
        Elements that the hardware had to give, all compared.
    mismatches : int
        Elements that differ or did not come, and broken rules of the stream.
    cycles : int
        Clock cycles simulated.
    seconds : float
        Wall time inside the model.
    total_seconds : float
        The same, with making the beats and comparing.
    first_mismatch : Mismatch or None
    verilog : Path
        The text that was simulated.
    stall_seed : int or None
    """

    unit: str
    layer: str
    lanes: int
    images: int
    activations: int
    compared: int
    mismatches: int
    cycles: int
    seconds: float
    total_seconds: float
    first_mismatch: Mismatch | None
    verilog: Path
    stall_seed: int | None

    def __add__(self, other: BulkResult) -> BulkResult:
        """The same layer on two batches."""
        names = ("images", "activations", "compared", "mismatches", "cycles", "seconds", "total_seconds")
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return replace(self, **sums, first_mismatch=self.first_mismatch or other.first_mismatch)


class BulkUnit:
    """A built unit that serves several layers, and its model.

    Parameters
    ----------
    layers : sequence of UnitVectors
        All the layers that it must serve; their activations do not matter.
    name : str
        Module name.
    """

    def __init__(self, layers: Sequence[UnitVectors], name: str, lanes: int, build_dir: Path, tools: Toolchain):
        self.unit = catalog.covering([(layer.spec, layer.constants) for layer in layers], lanes=lanes)
        self.bits = beat_bits(self.unit)
        self.element = axi.element_of(self.unit.o.payload)
        text = verilog.export(self.unit, name)
        folder = build_library(
            text, name, self.bits, loadable=self.unit.loadable, build_dir=Path(build_dir), tools=tools
        )
        self.verilog = folder / f"{name}.v"
        self.model = BulkModel(folder, self.bits, patience=patience(self.unit))
        self._padding = np.random.default_rng(0)

    def run(self, layer: UnitVectors, stall_seed: int | None) -> BulkResult:
        """Play one batch of a layer and compare every output element."""
        start = time.perf_counter()
        play, expected = stimulus(self.unit, layer, self._padding)
        began, before = time.perf_counter(), self.model.cycle
        played, unstable, finished = self.model.play(play, stall_seed)
        seconds = time.perf_counter() - began
        mismatches, first = compare(layer, self.element, expected, played, unstable, self.model.cycle)
        if not finished:
            self.model.reset()
        return BulkResult(
            unit=layer.spec.kind,
            layer=layer.layer,
            lanes=self.unit.lanes,
            images=len(layer.images),
            activations=sum(array.size for array in layer.inputs),
            compared=int(expected.beats.keep.sum()),
            mismatches=mismatches,
            cycles=self.model.cycle - before,
            seconds=seconds,
            total_seconds=time.perf_counter() - start,
            first_mismatch=first,
            verilog=self.verilog,
            stall_seed=stall_seed,
        )


def patience(unit: StreamUnit) -> int:
    """Cycles without any transfer after which a unit counts as stuck: more than twice its slowest row."""
    longest = max(getattr(unit.spec, field, 1) for field in ("row_length", "channels"))
    return 1024 + 4 * (unit.latency + unit.cycles_per_row(longest))


def cosimulate_bulk(
    batches: Iterable[Sequence[UnitVectors]],
    *,
    lanes: int | Mapping[str, int],
    build_dir: Path,
    stall_seeds: Sequence[int | None] = (None,),
    max_workers: int | None = None,
) -> list[BulkResult]:
    """Run batch after batch of activations through hardware and compare every output element.

    Layers that one unit can serve share one model, their constants loaded one after the other. Only one
    batch is in memory at a time.

    Parameters
    ----------
    batches : iterable of sequences of UnitVectors
        Each the same layers, in the same order, on other images.
    lanes : int or mapping of kind to int
    build_dir : Path
        Keeps the Verilog and the built models.
    stall_seeds : sequence of int or None
        A run for each: with stalls on both sides at random, or None for full rate.
    max_workers : int, optional
        Units that run at the same time, by default one a processor.

    Returns
    -------
    list of BulkResult
        For each of `stall_seeds` the layers in order, all batches added up.

    Raises
    ------
    HwsimError
        No hardware of a kind, or a tool is missing or fails.
    """
    tools = find_toolchain()
    units: dict[GroupKey, BulkUnit] = {}
    totals: dict[tuple[int, int], BulkResult] = {}
    try:
        with ThreadPoolExecutor(max_workers or os.cpu_count()) as pool:
            for batch in batches:
                groups: dict[GroupKey, list[int]] = {}
                for place, layer in enumerate(batch):
                    groups.setdefault(catalog.group_key(layer.spec), []).append(place)
                served = [[batch[place] for place in places] for places in groups.values()]
                if not units:
                    names = module_names(list(groups)).values()
                    built = pool.map(partial(_build, lanes=lanes, build_dir=build_dir, tools=tools), served, names)
                    units = dict(zip(groups, built, strict=True))
                ready = [units[key] for key in groups]
                found = pool.map(partial(_run, stall_seeds=stall_seeds), ready, served)
                for places, results in zip(groups.values(), found, strict=True):
                    for number, per_layer in enumerate(results):
                        for place, result in zip(places, per_layer, strict=True):
                            key = (number, place)
                            totals[key] = totals[key] + result if key in totals else result
    finally:
        for unit in units.values():
            unit.model.close()
    return [totals[key] for key in sorted(totals)]


def _build(
    layers: Sequence[UnitVectors], name: str, *, lanes: int | Mapping[str, int], build_dir: Path, tools: Toolchain
) -> BulkUnit:
    width = lanes if isinstance(lanes, int) else lanes[layers[0].spec.kind]
    return BulkUnit(layers, name, width, build_dir, tools)


def _run(unit: BulkUnit, layers: Sequence[UnitVectors], stall_seeds: Sequence[int | None]) -> list[list[BulkResult]]:
    """Results of one batch, a list of layers for each of the seeds."""
    return [[unit.run(layer, seed) for layer in layers] for seed in stall_seeds]
