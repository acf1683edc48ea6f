"""``hwsim rtl`` and ``hwsim cosim``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from golden.errors import HwsimError
from hwsim.cli.display import progress, table
from hwsim.cli.source import BUILD, evaluation_images, open_program, parse_images, program_option

if TYPE_CHECKING:
    from golden.vectors import UnitVectors
    from hwsim.program import Node, Program
    from sim_tests.cosim import CosimResult


def hardware_nodes(program: Program, layers: Sequence[str], units: Sequence[str]) -> list[Node]:
    """Selected nodes that have a hardware unit.

    Raises
    ------
    HwsimError
        The selection is empty, or a unit was named that has no hardware.
    """
    from hwsim.dump import select_nodes
    from rtl import catalog

    for unit in units:
        catalog.entry(unit)
    kinds = [unit for unit in units if unit != "adalog_decode"] + ["adalog_matmul"] * ("adalog_decode" in units)
    chosen = [node for node in select_nodes(program, layers, kinds) if node.spec.kind in catalog.UNITS]
    if not chosen:
        raise HwsimError(f"none of the chosen layers has a hardware unit; there are {', '.join(sorted(catalog.UNITS))}")
    return chosen


@click.command("rtl")
@click.argument("unit")
@program_option
@click.option(
    "--layer", "layers", multiple=True, help="Layers that the unit must serve.  [default: all that have the unit]"
)
@click.option("--lanes", default=1, show_default=True, type=click.IntRange(1, 64), help="Elements a clock cycle.")
@click.option("--baked", is_flag=True, help="Bake in the constants of the (single) layer instead of loading them.")
@click.option("--name", help="Module name.  [default: UNIT]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=BUILD / "rtl", show_default=True, help="Folder."
)
def rtl_command(
    unit: str,
    program_path: Path | None,
    layers: tuple[str, ...],
    lanes: int,
    baked: bool,
    name: str | None,
    output: Path,
) -> None:
    """Write the Verilog of UNIT and a page of facts.

    UNIT is a kind such as log_softmax, layernorm, lookup or log2_matmul. By default one unit is
    built that serves all the layers, its constants loaded at run time; their write words are
    written beside it as .hex, one file a layer.
    """
    from golden.files import write_atomically
    from rtl import catalog, verilog

    program = open_program(program_path)
    nodes = hardware_nodes(program, layers, [unit])
    pairs = [_spec_of(node, unit) for node in nodes]
    if baked:
        if len(nodes) != 1:
            raise HwsimError(
                f"--baked takes the constants of one layer, {len(nodes)} are chosen; name one with --layer"
            )
        spec, constants = pairs[0]
        hardware = catalog.entry(unit).unit(spec, lanes=lanes, constants=constants)
    else:
        hardware = catalog.covering(pairs, lanes=lanes)
    module = name or unit
    text = verilog.export(hardware, module)
    facts = verilog.facts(hardware, module)
    files = [output / f"{module}.v", output / f"{module}.md"]
    write_atomically(files[0], text)
    write_atomically(files[1], facts.markdown())
    if not baked:
        from sim_tests.beats import words_of

        port = hardware.w.payload
        for node, (spec, constants) in zip(nodes, pairs, strict=True):
            words = words_of(hardware.writes(spec, constants), len(port.address), len(port.data))
            lines = [bytes(word)[::-1].hex() for word in words]
            files.append(output / f"{module}.{node.name}.constants.hex")
            write_atomically(files[-1], f"// {node.name}: words for s_axis_write_tdata\n" + "\n".join(lines) + "\n")
    rows = [(port.name, port.direction, port.width, port.meaning) for port in facts.ports]
    table(("port", "direction", "bits", "meaning"), rows, title=f"{module}: {facts.summary}")
    click.echo(f"latency: {facts.latency} cycles; cycles a row: {facts.cycles_formula}")
    if facts.cycles_longest_row is not None:
        click.echo(f"a row of {facts.longest_row}: {facts.cycles_longest_row} cycles")
    for path in files[:3]:
        click.echo(f"wrote {path}")
    if len(files) > 3:
        click.echo(f"and the constants of {len(files) - 3} more layers")


def _spec_of(node: Node, unit: str) -> tuple[Any, dict[str, Any]]:
    """Spec and constants of a node's unit; the decoder of AdaLog codes shares those of their product."""
    if unit != "adalog_decode":
        return node.spec, dict(node.constants)
    from hwsim.dump import decoder_of

    return decoder_of(node)


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
    output: Path,
) -> None:
    """Compare the Verilog of units with every activation of a program.

    Builds each unit with Verilator, loads the constants of one layer after the other, replays the
    activations of the chosen images and compares every output. A mismatch names unit, layer, row,
    element, expected and got, leaves a waveform of its neighbourhood, and the exit status is 1.
    """
    if vector_files:
        from golden.vectors import read_vectors

        vectors = [read_vectors(path) for path in vector_files]
    else:
        vectors = _program_vectors(program_path, layers, units, images_text, data)
    results: list[CosimResult] = []
    choices: dict[str, list[int | None]] = {"none": [None], "random": [seed], "both": [None, seed]}
    runs = choices[stalls]
    from sim_tests.cosim import cosimulate

    with progress("cosimulating", len(runs)) as done:
        for stall_seed in runs:
            results += cosimulate(vectors, lanes=lanes, build_dir=output, stall_seed=stall_seed)
            done(1)
    show_results(results)
    if any(result.mismatches for result in results):
        sys.exit(1)


def _program_vectors(
    program_path: Path | None, layers: Sequence[str], units: Sequence[str], images_text: str, data: Path | None
) -> list[UnitVectors]:
    from hwsim.dump import dump_vectors
    from rtl import catalog

    program = open_program(program_path)
    nodes = hardware_nodes(program, layers, units)
    indices = parse_images(images_text)
    images = evaluation_images(program, data, max(indices) + 1 if data is None else None).images
    wanted = set(units) or set(catalog.UNITS)
    return [vectors for vectors in dump_vectors(program, images, indices, nodes) if vectors.spec.kind in wanted]


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
                click.echo(f"waveform: {_from_here(result.waveform)}")
    compared = sum(result.compared for result in results)
    wrong = sum(result.mismatches for result in results)
    cycles = sum(result.cycles for result in results)
    click.echo(f"{compared:,} activations compared in {cycles:,} clock cycles, {wrong:,} mismatches")


def _from_here(path: Path) -> Path:
    """A path below the working folder as seen from there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
