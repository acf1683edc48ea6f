"""The part of the demo in hardware: every unit of the programs through Verilog, and where its files lie."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from golden.errors import HwsimError
from golden.files import write_atomically
from golden.vectors import UnitVectors, write_hex, write_vectors
from hwsim.dump import dump_vectors
from hwsim.program import Program
from hwsim.report import RtlLayer, RtlRun, RtlUnit
from hwsim.unit_vectors import unit_kinds, unit_vectors
from rtl import catalog, verilog
from sim_tests.cosim import CosimResult, cosimulate

STALL_SEED = 1
# Two cosimulations of a unit: at full rate and with stalls.
RUNS = 2


def hardware_vectors(
    programs: Sequence[Program], images: np.ndarray, count: int, units: Collection[str]
) -> dict[str, list[UnitVectors]]:
    """Vectors of every layer that there is hardware for, by kind of unit.

    Parameters
    ----------
    programs : sequence of Program
        A kind is taken from the first program that has it.
    images : ndarray of uint8 [N, H, W, C]
    count : int
        The first so many images.
    units : collection of str
        Kinds; none takes all.

    Raises
    ------
    HwsimError
        A kind that no program has, or images that are not there.
    """
    found: dict[str, list[UnitVectors]] = {}
    for program in programs:
        fresh: dict[str, list[UnitVectors]] = {}
        missing = catalog.UNITS.keys() - found
        nodes = [node for node in program.nodes if missing & {*unit_kinds(node.spec.kind)}]
        for vectors in unit_vectors(dump_vectors(program, images, range(count), nodes)) if nodes else []:
            if vectors.spec.kind in missing:
                fresh.setdefault(vectors.spec.kind, []).append(vectors)
        found |= fresh
    for unit in units:
        if unit not in found:
            raise HwsimError(f"the demo has no activations of a unit {unit!r}; choose among {', '.join(sorted(found))}")
    return {kind: vectors for kind, vectors in found.items() if not units or kind in units}


def write_samples(vectors: dict[str, list[UnitVectors]], folder: Path) -> None:
    """Every layer as safetensors, and the first layer of each kind as ``.hex`` files too."""
    for kind, layers in vectors.items():
        for place, layer in enumerate(layers):
            name = f"{layer.layer}.{kind}"
            write_vectors(folder / f"{name}.safetensors", layer)
            if place == 0:
                write_hex(folder / f"{name}.hex", layer)


def cosimulate_units(
    vectors: dict[str, list[UnitVectors]], *, lanes: int, output: Path, progress: Callable[[int], None]
) -> tuple[RtlUnit, ...]:
    """Every layer through the Verilog of its unit, at full rate and with random stalls.

    Parameters
    ----------
    vectors : dict
        Of `hardware_vectors`.
    lanes : int
        Elements a beat.
    output : Path
        Folder of the report: Verilog and facts go to ``rtl``, simulators to ``cosim``.
    progress : callable
        Called with 1 after each cosimulation of a kind.
    """

    def both(kind: str) -> list[list[CosimResult]]:
        runs = []
        for seed in (None, STALL_SEED):
            runs.append(
                cosimulate(vectors[kind], lanes=lanes, build_dir=output / "cosim", stall_seed=seed, max_workers=1)
            )
            progress(1)
        return runs

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(vectors, pool.map(both, vectors), strict=True))
    units = []
    for kind, runs in results.items():
        # One kind may need several units, for layers that differ in what a unit cannot vary.
        modules: dict[Path, list[tuple[UnitVectors, CosimResult, CosimResult]]] = {}
        for layer, full_rate, stalled in zip(vectors[kind], *runs, strict=True):
            modules.setdefault(full_rate.verilog, []).append((layer, full_rate, stalled))
        units += [_unit(text, layers, lanes, output) for text, layers in modules.items()]
    return tuple(units)


def _run(result: CosimResult, output: Path) -> RtlRun:
    waveform = result.waveform
    return RtlRun(
        compared=result.compared,
        mismatches=result.mismatches,
        cycles=result.cycles,
        first_mismatch=None if result.first_mismatch is None else str(result.first_mismatch),
        waveform=None if waveform is None else waveform.resolve().relative_to(output.resolve()).as_posix(),
    )


def _unit(
    text: Path, found: Sequence[tuple[UnitVectors, CosimResult, CosimResult]], lanes: int, output: Path
) -> RtlUnit:
    """Write the Verilog where users look for it, with its page of facts, and sum up its layers."""
    module = text.stem
    unit = catalog.covering([(layer.spec, layer.constants) for layer, _, _ in found], lanes=lanes)
    source = verilog.export(unit, module)
    if source != text.read_text():
        raise RuntimeError(f"{module}: the Verilog is not the simulated one ({text})")
    names = f"rtl/{module}.v", f"rtl/{module}.md"
    for name, content in zip(names, (source, verilog.facts(unit, module).markdown()), strict=True):
        write_atomically(output / name, content)
    layers = []
    for layer, full_rate, stalled in found:
        cycles_per_row = full_rate.cycles_per_row
        if full_rate.rows == 1 and not full_rate.mismatches:
            # Between the ends of rows: with a single one only the unit's formula, which tests check, can tell.
            codes = catalog.entry(layer.spec.kind).rows(unit, layer).inputs[0]
            cycles_per_row = float(unit.cycles_per_row(codes.shape[1]))
        layers.append(
            RtlLayer(
                layer=layer.layer,
                rows_per_image=full_rate.rows // len(layer.images),
                cycles_per_row=cycles_per_row,
                full_rate=_run(full_rate, output),
                stalled=_run(stalled, output),
            )
        )
    first = found[0][0]
    return RtlUnit(
        unit=first.spec.kind,
        module=module,
        recipe=first.recipe,
        lanes=lanes,
        images=len(first.images),
        latency=unit.latency,
        verilog=names[0],
        facts=names[1],
        layers=tuple(layers),
    )
