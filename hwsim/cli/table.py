"""``hwsim table``."""

from __future__ import annotations

import fnmatch
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from golden.errors import HwsimError
from hwsim.cli.display import table
from hwsim.cli.source import (
    BUILD,
    calibration_source,
    check_device,
    device_option,
    evaluation_images,
    network_options,
)

if TYPE_CHECKING:
    from hwsim.quantize.recipe import Recipe
    from hwsim.tables import RowResult


@click.command("table")
@click.argument("name", metavar="TABLE")
@network_options
@click.option("--network", "named", metavar="NETWORK", help="The same as the second argument.")
@click.option(
    "--on", "on_data", type=click.Path(path_type=Path), help="Images to evaluate on.  [default: the embedded test set]"
)
@click.option("--on-images", type=click.IntRange(1), help="At most this many images to evaluate on.")
@click.option("--batch", default=100, show_default=True, type=click.IntRange(1), help="Images a calibration batch.")
@click.option(
    "--iterations",
    type=click.IntRange(1),
    help="adalog-reconstruction: of each block's reconstruction.  [default: 300]",
)
@click.option("--rows", "patterns", multiple=True, help='Only rows that match, such as "OMSE*".')
@device_option
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=BUILD / "tables", show_default=True, help="Folder."
)
def table_command(
    name: str,
    network: str,
    checkpoint: Path | None,
    architecture: str | None,
    random_weights: int | None,
    data: Path | None,
    images: int | None,
    seed: int,
    named: str | None,
    on_data: Path | None,
    on_images: int | None,
    batch: int,
    iterations: int | None,
    patterns: tuple[str, ...],
    device: str,
    output: Path,
) -> None:
    """Measure a published result table on a network: float, fake-quantized and integer top-1.

    TABLE is fq-vit, ptq4vit, ptq4vit-as-released, adalog (the main table), adalog-components, adalog-searches,
    adalog-attention, adalog-gelu, adalog-reconstruction or widths. Prints the table and writes it as CSV and
    Markdown. Every row is kept as soon as it is measured: a run that was stopped goes on where it was, and one after
    a change of code, network or images measures again.
    """
    from golden.files import write_atomically
    from hwsim.identity import code_digest
    from hwsim.quantize.recipes import TABLES
    from hwsim.tables import ResultTable, frame, markdown

    check_device(device)
    if named is not None:
        network = _one_network(network, named)
    if name not in TABLES:
        raise HwsimError(f"there is no table {name!r}; choose one of {', '.join(TABLES)}")
    recipes = TABLES[name](batch)
    if iterations is not None:
        recipes = _with_iterations(name, recipes, iterations)
    chosen = {
        label: recipe
        for label, recipe in recipes.items()
        if not patterns or any(fnmatch.fnmatchcase(label, pattern) for pattern in patterns)
    }
    if not chosen:
        raise HwsimError(f"no row matches {' or '.join(patterns)}; the rows are {', '.join(recipes)}")
    graph, image_set = calibration_source(network, checkpoint, architecture, data, images, seed, random_weights)
    evaluation = evaluation_images(graph, on_data, on_images)
    measured = ResultTable(
        graph, image_set.images, evaluation, folder=output / "rows", code=code_digest(), device=device
    )
    rows = []
    with _Stages(len(chosen)) as stages:
        for label, recipe in chosen.items():
            rows.append(measured.row(label, recipe, stages.stage))
            stages.row_done()
    if all(row.fake_quant_top1 is None for row in rows):
        raise HwsimError(rows[0].note)
    path = output / f"{name}-{graph.name}"
    command = shlex.join(["hwsim", *sys.argv[1:]])
    write_atomically(path.with_suffix(".csv"), frame(rows).to_csv(index=False))
    write_atomically(path.with_suffix(".md"), markdown(graph.name, rows, command))
    searched = any(row.tried for row in rows)
    table(
        ("row", "float", "fake-quantized", "integer", *["candidates"] * searched, "calibration, s"),
        [
            (
                row.label,
                row.float_top1,
                "-" if row.fake_quant_top1 is None else row.fake_quant_top1,
                "-" if row.integer_top1 is None else row.integer_top1,
                *[row.tried] * searched,
                row.calibration_seconds,
            )
            for row in rows
        ],
        title=f"{name} on {graph.name}: top-1 % of {rows[0].images} images, "
        f"{max(row.calibration_images for row in rows)} to calibrate",
    )
    for note, labels in _notes(rows).items():
        click.echo(f"no integer program of {', '.join(labels)}: {note}")
    click.echo(f"wrote {path}.csv and .md")


def _one_network(argument: str, option: str) -> str:
    """The network of ``--network``.

    Raises
    ------
    HwsimError
        The argument names another.
    """
    given = click.get_current_context().get_parameter_source("network") is not ParameterSource.DEFAULT
    if given and argument != option:
        raise HwsimError(f"--network {option}: the network is {argument} already; name it once")
    return option


def _notes(rows: list[RowResult]) -> dict[str, list[str]]:
    """Rows without a figure, by the reason."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            notes.setdefault(row.note, []).append(row.label)
    return notes


def _with_iterations(name: str, recipes: dict[str, Recipe], iterations: int) -> dict[str, Recipe]:
    """The recipes with another length of their reconstruction.

    Raises
    ------
    HwsimError
        None of them has one.
    """
    from dataclasses import replace

    changed = {}
    for label, recipe in recipes.items():
        if recipe.reconstruct is not None:
            settings = replace(recipe.reconstruct, iterations=iterations)
            name = recipe.name.replace(recipe.reconstruct.label, settings.label)
            changed[label] = replace(recipe, name=name, reconstruct=settings)
    if not changed:
        raise HwsimError(f"--iterations: no row of {name} is reconstructed; leave the option out")
    return recipes | changed


class _Stages:
    """Two progress bars on standard error: the rows, and the images or layers of the stage at hand."""

    def __init__(self, rows: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.rows = self.bars.add_task("rows", total=rows)
        self.images = self.bars.add_task("", total=1)

    def __enter__(self) -> _Stages:
        self.bars.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.bars.stop()

    def stage(self, label: str, total: int) -> Callable[[int], None]:
        """Begin a stage; what it gives is called with the number of images or layers done."""
        self.bars.reset(self.images, description=label, total=total)
        return lambda count: self.bars.advance(self.images, count)

    def row_done(self) -> None:
        """One row more."""
        self.bars.advance(self.rows)
