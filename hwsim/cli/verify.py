"""``hwsim bulk``, ``hwsim coverage`` and ``hwsim mutate``: the second tier of verification."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING

import click

from golden.errors import HwsimError
from hwsim.cli.display import progress, table
from hwsim.cli.hardware import hardware_nodes, wanted_units
from hwsim.cli.source import BUILD, evaluation_images, open_program, parse_images, program_option, with_options

if TYPE_CHECKING:
    from golden.vectors import UnitVectors
    from hwsim.program import Program
    from sim_tests.bulk import BulkResult

layer_option = click.option("--layer", "layers", multiple=True, help="Layers to take.  [default: all]")
lanes_option = click.option(
    "--lanes", default=1, show_default=True, type=click.IntRange(1, 64), help="Elements a clock cycle."
)
output_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=BUILD / "bulk", show_default=True, help="Folder."
)
data_option = click.option(
    "--data", type=click.Path(path_type=Path), help="Folder of images.  [default: the embedded test set]"
)
unit_options = with_options(
    click.argument("units", nargs=-1, metavar="[UNIT]..."), program_option, layer_option, data_option, lanes_option
)


@click.command("bulk")
@program_option
@layer_option
@click.option("--unit", "units", multiple=True, help="Unit kinds to check.  [default: all that have hardware]")
@click.option("--images", "images_text", default="0-9", show_default=True, help="Image indices, such as 0,3,10-12.")
@data_option
@lanes_option
@click.option(
    "--stalls",
    type=click.Choice(["both", "none", "random"]),
    default="random",
    show_default=True,
    help="A run at full rate, a run with random stalls on both sides, or both.",
)
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), help="Seed of the stalls.")
@click.option(
    "--batch", default=10, show_default=True, type=click.IntRange(1), help="Images in memory at the same time."
)
@click.option(
    "--exhaustive", is_flag=True, help="The whole input space where it is small, with each layer's constants."
)
@click.option("--each-layer", is_flag=True, help="A line for each layer instead of each kind of unit.")
@output_option
def bulk_command(
    program_path: Path | None,
    layers: tuple[str, ...],
    units: tuple[str, ...],
    images_text: str,
    data: Path | None,
    lanes: int,
    stalls: str,
    seed: int,
    batch: int,
    exhaustive: bool,
    each_layer: bool,
    output: Path,
) -> None:
    """Compare units with millions of activations.

    As `hwsim cosim`, but the Verilog runs as a compiled library at millions of clock cycles a second, and the
    images go through in batches. A mismatch is named, and the exit status is 1; `hwsim cosim` with the same
    layer and image makes a waveform of it.
    """
    program = open_program(program_path)
    runs: dict[str, list[int | None]] = {"none": [None], "random": [seed], "both": [None, seed]}
    indices = [0] if exhaustive else parse_images(images_text)
    from sim_tests.bulk import cosimulate_bulk

    with progress("images", len(indices)) as done:

        def batches() -> Iterator[list[UnitVectors]]:
            for vectors in _batches(program, layers, units, indices, data, batch):
                yield _input_spaces(vectors, units) if exhaustive else vectors
                done(len(vectors[0].images))

        results = cosimulate_bulk(batches(), lanes=lanes, build_dir=output, stall_seeds=runs[stalls])
    _show_bulk(results if each_layer else _by_unit(results), "layer" if each_layer else "layers")
    wrong = [result for result in results if result.mismatches]
    for result in wrong:
        click.echo(f"first mismatch: {result.first_mismatch}")
    if wrong:
        click.echo(f"Verilog: {wrong[0].verilog}")
        sys.exit(1)


def _batches(
    program: Program, layers: Sequence[str], units: Sequence[str], indices: Sequence[int], data: Path | None, size: int
) -> Iterator[list[UnitVectors]]:
    """Activations of the chosen layers, so many images at a time."""
    from hwsim.dump import dump_vectors
    from hwsim.unit_vectors import unit_vectors

    nodes = hardware_nodes(program, layers, units)
    images = evaluation_images(program, data, max(indices) + 1 if data is None else None).images
    wanted = wanted_units(units)
    for start in range(0, len(indices), size):
        found = list(unit_vectors(dump_vectors(program, images, indices[start : start + size], nodes)))
        yield [vectors for vectors in found if vectors.spec.kind in wanted]


def _input_spaces(layers: Sequence[UnitVectors], units: Sequence[str]) -> list[UnitVectors]:
    """The whole input space of each layer where it is small, with that of the scaling behind a product."""
    from sim_tests.inputs import boundaries, exhaustive, scaling_of

    found = []
    for layer in layers:
        space = exhaustive(layer)
        found += [space] if space is not None else []
        found += list(boundaries(layer))
        scaling = scaling_of(layer)
        if scaling is not None and (not units or "requantize" in units):
            space = exhaustive(scaling)
            found += [space] if space is not None else []
    if not found:
        kinds = sorted({layer.spec.kind for layer in layers})
        raise HwsimError(f"{', '.join(kinds)}: the input space is never small; choose another --unit")
    return found


def _by_unit(results: Sequence[BulkResult]) -> list[BulkResult]:
    """Results of all layers of a kind added up, at full rate and stalled apart."""
    from dataclasses import replace

    groups: dict[tuple[str, int | None], list[BulkResult]] = defaultdict(list)
    for result in results:
        groups[result.unit, result.stall_seed].append(result)
    return [
        replace(
            reduce(add, group),
            layer=str(len({result.layer for result in group})),
            images=max(result.images for result in group),
        )
        for group in groups.values()
    ]


def _show_bulk(results: Sequence[BulkResult], layer_title: str) -> None:
    columns = (
        *("unit", layer_title, "stalls", "images", "activations in", "compared", "mismatches", "clock cycles"),
        *("Mcycles/s", "with beats", "compared/s"),
    )
    rows = [
        (
            result.unit,
            result.layer,
            "none" if result.stall_seed is None else "random",
            result.images,
            result.activations,
            result.compared,
            result.mismatches,
            result.cycles,
            round(result.cycles / result.seconds / 1e6, 2),
            round(result.cycles / result.total_seconds / 1e6, 2),
            int(result.compared / result.total_seconds),
        )
        for result in results
    ]
    table(columns, rows, title="RTL against golden activations, bulk tier")
    total = reduce(add, results)
    click.echo(
        f"{total.compared:,} activations compared in {total.cycles:,} clock cycles, {total.mismatches:,} mismatches; "
        f"{total.cycles / total.seconds / 1e6:.1f} million cycles a second in the model, "
        f"{total.cycles / total.total_seconds / 1e6:.1f} with making the beats and comparing"
    )


@click.command("coverage")
@unit_options
@click.option("--missing", is_flag=True, help="List what is not covered.")
@output_option
def coverage_command(
    units: tuple[str, ...],
    program_path: Path | None,
    layers: tuple[str, ...],
    data: Path | None,
    lanes: int,
    missing: bool,
    output: Path,
) -> None:
    """Line and toggle coverage of UNITs under the standard stimulus."""
    groups = _unit_groups(program_path, layers, units, data)
    from sim_tests.coverage import cover

    found = []
    with progress("covering", len(groups)) as done:
        for name, vectors in groups.items():
            found.append(cover(vectors, name=name, lanes=lanes, build_dir=output))
            done(1)
    rows = [
        (
            item.module,
            f"{item.lines_hit} of {item.lines}",
            round(100 * item.lines_hit / item.lines, 1),
            f"{item.toggles_hit} of {item.toggles}",
            round(100 * item.toggles_hit / item.toggles, 1),
        )
        for item in found
    ]
    table(("unit", "lines", "%", "toggles", "%"), rows, title=f"coverage of the standard stimulus, lanes {lanes}")
    if missing:
        for item in found:
            click.echo(f"{item.module} ({item.verilog}):")
            if item.missing_lines:
                click.echo(f"  lines {', '.join(map(str, item.missing_lines))}")
            for signal, changes in item.missing_toggles.items():
                click.echo(f"  {signal} {' '.join(changes)}")


@click.command("mutate")
@unit_options
@click.option("--count", default=60, show_default=True, type=click.IntRange(1, 1000), help="Mutants a unit.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the sample.")
@click.option("--all", "show_all", is_flag=True, help="List every mutant, not only the survivors.")
@click.option("--prove", is_flag=True, help="Try to prove of each survivor that it computes the same.")
@output_option
def mutate_command(
    units: tuple[str, ...],
    program_path: Path | None,
    layers: tuple[str, ...],
    data: Path | None,
    lanes: int,
    count: int,
    seed: int,
    show_all: bool,
    prove: bool,
    output: Path,
) -> None:
    """Build small faults into UNITs and see whether the standard stimulus notices each.

    All mutants of a unit are in one model; a port chooses one. The unit without a mutant must pass first.
    Survivors are listed: they compute the same, or the stimulus has a hole. A mutant that is proven to compute
    the same does not count in the last column.
    """
    groups = _unit_groups(program_path, layers, units, data)
    from sim_tests.mutation import run_mutation

    found = []
    with progress("mutants", count * len(groups)) as done:
        for name, vectors in groups.items():
            found.append(
                run_mutation(
                    vectors,
                    name=name,
                    lanes=lanes,
                    count=count,
                    seed=seed,
                    build_dir=output,
                    prove=prove,
                    progress=done,
                )
            )
    rows = [
        (
            item.module,
            item.possible,
            tried,
            item.killed,
            item.same,
            round(100 * item.killed / max(tried - item.same, 1), 1),
        )
        for item in found
        for tried in (len(item.verdicts),)
    ]
    table(
        ("unit", "possible", "tried", "killed", "proven the same", "% of others"),
        rows,
        title=f"mutants killed by the standard stimulus, lanes {lanes}, seed {seed}",
    )
    for item in found:
        for verdict in item.verdicts:
            if show_all or not verdict.killed_by:
                fate = verdict.killed_by or ("proven the same" if verdict.same else "survived")
                fate += ", some results come in other cycles" * verdict.slower
                click.echo(f"{item.module} {verdict.number}: {verdict.mutant}: {fate}")


def _unit_groups(
    program_path: Path | None, layers: Sequence[str], units: Sequence[str], data: Path | None
) -> dict[str, list[UnitVectors]]:
    """By module name: some rows of the first and the last layer of each unit that the choice needs."""
    from rtl import catalog
    from sim_tests.cosim import module_names
    from sim_tests.inputs import some_rows

    (vectors,) = _batches(open_program(program_path), layers, units, [0], data, 1)
    groups: dict[tuple[object, ...], list[UnitVectors]] = defaultdict(list)
    for layer in vectors:
        groups[catalog.group_key(layer.spec)].append(layer)
    names = module_names(list(groups))
    return {names[key]: [some_rows(layer) for layer in (found[0], *found[1:][-1:])] for key, found in groups.items()}
