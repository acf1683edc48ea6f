"""``hwsim cosim``, and the choice of layers that have a hardware unit."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from golden.errors import HwsimError
from hwsim.cli.display import progress, table
from hwsim.cli.source import BUILD, evaluation_images, open_program, parse_images, program_option

if TYPE_CHECKING:
    from golden.vectors import UnitVectors
    from hwsim.program import Node, Program
    from hwsim.unit_vectors import UnitLayer
    from sim_tests.cosim import CosimResult
    from sim_tests.ports import PortMap


def hardware_nodes(program: Program, layers: Sequence[str], units: Sequence[str]) -> list[Node]:
    """Selected nodes whose work hardware units do, see `hwsim.unit_vectors`.

    Parameters
    ----------
    program, layers, units
        See `hwsim.dump.select_nodes`; units are kinds of hardware, or of nodes that run on it.

    Raises
    ------
    HwsimError
        The selection is empty, or a unit was named that has no hardware.
    """
    from hwsim.dump import select_nodes
    from hwsim.unit_vectors import unit_kinds
    from rtl import catalog

    for unit in units:
        if not any(made in catalog.UNITS for made in unit_kinds(unit)):
            catalog.entry(unit)
    kinds = []
    for unit in units:
        present = dict.fromkeys(node.spec.kind for node in program.nodes)
        # A unit that the program lacks is named by the selection.
        kinds += [kind for kind in present if unit == kind or unit in unit_kinds(kind)] or [unit]
    chosen = [
        node
        for node in select_nodes(program, layers, kinds)
        if any(kind in catalog.UNITS for kind in unit_kinds(node.spec.kind))
    ]
    if not chosen:
        raise HwsimError(f"none of the chosen layers has a hardware unit; there are {', '.join(sorted(catalog.UNITS))}")
    return chosen


def hardware_layers(program: Program, layers: Sequence[str], units: Sequence[str]) -> list[UnitLayer]:
    """What hardware units are loaded with for chosen layers: of all units, or of those named.

    Parameters
    ----------
    program, layers, units
        See `hardware_nodes`; a layer may be one head of it, ``LAYER.headN``.

    Raises
    ------
    HwsimError
        See `hardware_nodes`; a head that a layer has not.
    """
    from hwsim.unit_vectors import unit_layers
    from rtl import catalog

    heads = {layer: match[1] for layer in layers if (match := _HEAD.fullmatch(layer))}
    nodes = hardware_nodes(program, [heads.get(layer, layer) for layer in layers], units)
    wanted = wanted_units(units) & set(catalog.UNITS)
    found = [layer for node in nodes for layer in unit_layers(node.name, node.spec, node.constants)]
    found = [layer for layer in found if layer.spec.kind in wanted]
    for head in heads:
        if not any(layer.name == head for layer in found):
            raise HwsimError(f"the program has no {head}; {heads[head]} has a unit for all its heads or fewer of them")
    whole = {layer.layer for layer in found} - set(heads.values())
    return [layer for layer in found if layer.layer in whole or layer.name in heads]


def wanted_units(units: Sequence[str]) -> set[str]:
    """Kinds of hardware of named units, which may be kinds of nodes that run on it; all without a name."""
    from hwsim.unit_vectors import unit_kinds
    from rtl import catalog

    if not units:
        return set(catalog.UNITS)
    # Of a kind that has a unit of its own, that one alone.
    return {made for unit in units for made in ((unit,) if unit in catalog.UNITS else unit_kinds(unit))}


_HEAD = re.compile(r"(.+)\.head\d+")


@click.command("cosim")
@program_option
@click.option("--layer", "layers", multiple=True, help="Layers to check.  [default: all]")
@click.option("--unit", "units", multiple=True, help="Unit kinds to check.  [default: all that have hardware]")
@click.option("--images", "images_text", default="0", show_default=True, help="Image indices, such as 0,3,10-12.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of images.  [default: the embedded test set]")
@click.option(
    "--vectors",
    "vector_files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Check dumped vector files instead of a program.",
)
@click.option("--lanes", default=1, show_default=True, type=click.IntRange(1, 64), help="Elements a clock cycle.")
@click.option(
    "--stalls",
    type=click.Choice(["both", "none", "random"]),
    default="both",
    show_default=True,
    help="A run at full rate, a run with random stalls on both sides, or both.",
)
@click.option("--seed", default=1, show_default=True, type=int, help="Seed of the stalls.")
@click.option(
    "--waveform-at",
    type=click.IntRange(0),
    metavar="CYCLE",
    help="Leave a waveform around this cycle of each unit, also without a mismatch.",
)
@click.option(
    "--verilog",
    "sources",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Check somebody else's unit: its Verilog, several files in reading order.",
)
@click.option("--top", help="Its module.")
@click.option("--map", "map_path", type=click.Path(path_type=Path), help="What its ports are: ports.toml.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=BUILD / "cosim", show_default=True, help="Folder."
)
def cosim_command(
    program_path: Path | None,
    layers: tuple[str, ...],
    units: tuple[str, ...],
    images_text: str,
    data: Path | None,
    vector_files: tuple[Path, ...],
    lanes: int,
    stalls: str,
    seed: int,
    waveform_at: int | None,
    sources: tuple[Path, ...],
    top: str | None,
    map_path: Path | None,
    output: Path,
) -> None:
    """Compare the Verilog of units with every activation of a program.

    Builds each unit with Verilator, loads the constants of one layer after the other, replays the
    activations of the chosen images and compares every output. A mismatch names unit, layer, row,
    element, expected and got, leaves a waveform of its neighbourhood, and the exit status is 1.

    With --verilog, --top and --map the unit is not ours but the one of these files.
    """
    ports = _port_map(sources, top, map_path)
    if ports is not None:
        if waveform_at is not None:
            raise HwsimError("--waveform-at is for units of ours; others leave a waveform at their first mismatch")
        if units not in ((), (ports.unit,)):
            raise HwsimError(f"--unit {', '.join(units)}: {ports.path} says that the unit is a {ports.unit}")
        if lanes not in (1, ports.lanes):
            raise HwsimError(f"--lanes {lanes}: {ports.path} says that the unit has {ports.lanes}; change lanes there")
        units, layers = (ports.unit,), layers or ports.layers
    if vector_files:
        from golden.vectors import read_vectors

        vectors = [read_vectors(path) for path in vector_files]
    else:
        program = open_program(program_path)
        nodes = hardware_nodes(program, layers, units)
        vectors = program_vectors(program, nodes, units, parse_images(images_text), data)
    results: list[CosimResult] = []
    choices: dict[str, list[int | None]] = {"none": [None], "random": [seed], "both": [None, seed]}
    runs = choices[stalls]
    from sim_tests.cosim import cosimulate
    from sim_tests.foreign import cosimulate_foreign, silent

    with progress("cosimulating", len(runs)) as done:
        for stall_seed in runs:
            if ports is None:
                results += cosimulate(
                    vectors, lanes=lanes, build_dir=output, stall_seed=stall_seed, waveform_at=waveform_at
                )
            else:
                results += cosimulate_foreign(
                    vectors, sources, str(top), ports, build_dir=output, stall_seed=stall_seed
                )
            done(1)
    show_results(results)
    if ports is not None:
        for said in dict.fromkeys(silent(result, ports) for result in results):
            if said is not None:
                click.echo(said)
    if any(result.mismatches for result in results):
        sys.exit(1)


def _port_map(sources: Sequence[Path], top: str | None, map_path: Path | None) -> PortMap | None:
    """The map of somebody else's unit, or None where the unit is ours."""
    if not sources and top is None and map_path is None:
        return None
    if not sources or top is None or map_path is None:
        raise HwsimError("somebody else's unit needs all of --verilog FILE, --top MODULE and --map ports.toml")
    from sim_tests.ports import read_map

    return read_map(map_path)


def program_vectors(
    program: Program, nodes: Sequence[Node], units: Sequence[str], indices: Sequence[int], data: Path | None
) -> list[UnitVectors]:
    """Activations of nodes on images of a folder (default: the embedded test set); of all units, or of those named."""
    from hwsim.dump import dump_vectors
    from hwsim.unit_vectors import unit_vectors

    images = evaluation_images(program, data, max(indices) + 1 if data is None else None).images
    wanted = wanted_units(units)
    found = unit_vectors(dump_vectors(program, images, indices, nodes))
    return [vectors for vectors in found if vectors.spec.kind in wanted]


def show_results(results: Sequence[CosimResult]) -> None:
    """Print cosimulation results, each first mismatch, and the totals."""
    columns = ("unit", "layer", "stalls", "compared", "mismatches", "clock cycles", "cycles a row")
    rows = [
        (
            result.unit,
            result.layer,
            "none" if result.stall_seed is None else "random",
            result.compared,
            result.mismatches,
            result.cycles,
            result.cycles_per_row,
        )
        for result in results
    ]
    table(columns, rows, title="RTL against golden activations")
    for result in results:
        if result.first_mismatch is not None:
            click.echo(f"first mismatch: {result.first_mismatch}")
            click.echo(f"Verilog: {_from_here(result.verilog)}")
        if result.waveform is not None:
            click.echo(f"waveform: {_from_here(result.waveform)} (open its .gtkw in GTKWave, its .sucl in Surfer)")
    compared = sum(result.compared for result in results)
    wrong = sum(result.mismatches for result in results)
    cycles = sum(result.cycles for result in results)
    click.echo(f"{compared:,} activations compared in {cycles:,} clock cycles, {wrong:,} mismatches")


def _from_here(path: Path) -> Path:
    """A path below the working folder as seen from there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
