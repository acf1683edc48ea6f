"""``hwsim bench``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hwsim.cli.display import table
from hwsim.cli.source import BUILD, open_program

if TYPE_CHECKING:
    from hwsim.bench.measure import Table
    from hwsim.program import Program
    from hwsim.quantize.recipe import Recipe

PARTS = ("networks", "gpu", "units", "growth", "first-call")


@click.command("bench")
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(PARTS),
    help="What to measure.  [default: everything; gpu where there is one]",
)
@click.option(
    "--program",
    "programs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Programs of networks and gpu.  [default: the embedded network at 8/8/4, and DeiT-Tiny with random weights at "
    "8/8/4 (FQ-ViT) and 4/4/4 (AdaLog)]",
)
@click.option("--batch", default=32, show_default=True, type=click.IntRange(1), help="Images a batch.")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(2), help="Rounds of every measurement.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=BUILD / "bench" / "speed.json",
    show_default=True,
    help="Results, compared with what the file held before; the tables as Markdown beside it.",
)
@click.option("--page", type=click.Path(path_type=Path), help="Also put the tables into this page, between its marks.")
def bench_command(
    parts: tuple[str, ...], programs: tuple[Path, ...], batch: int, rounds: int, output: Path, page: Path | None
) -> None:
    """Measure speed and memory beside PyTorch, onnxruntime, NumPy and apytypes.

    Candidates run in turns, and medians and spreads are given, but a busy machine makes them worthless: a warning
    tells. onnxruntime with onnx, and apytypes, are left out where they are not installed.
    """
    from hwsim.bench import WAITING, report
    from hwsim.bench.measure import NOISY, machine, noise

    last = report.tables_of(output)
    described, spread = machine(), noise()
    _tell_noise(spread, described["load"])
    if spread > NOISY:
        # PyTorch's users do not have this, but on a busy machine its spinning threads would take many times as long.
        os.environ.setdefault(*WAITING)
    tables: list[Table] = []
    for part in parts or _possible():
        result = _measurements(programs, batch, rounds)[part]()
        table(result.columns, result.rows, title=result.title)
        worst = max(spread, noise())
        if spread <= NOISY:
            _tell_noise(worst)
        spread = worst
        tables = [replace(entry, machine=described, noise=spread) for entry in (*tables, result)]
        # What is measured is kept, whatever happens to the next part.
        report.save(output, tables)
    for line in report.changes(tables, last):
        click.echo(line)
    text = report.markdown(report.tables_of(output), tables[-1])
    output.with_suffix(".md").write_text(text)
    if page is not None:
        report.replace_section(page, text)
    click.echo(f"results: {output}, {output.with_suffix('.md')}")


def _tell_noise(spread: float, load: float | None = None) -> None:
    from hwsim.bench.measure import NOISY

    if spread > NOISY:
        click.echo(
            f"hwsim: the machine is too noisy to tell: runs of one fixed computation lie {100 * spread:.0f} % apart"
            f"{'' if load is None else f' (load {load})'}; measure again when it is idle",
            err=True,
        )


def _possible() -> tuple[str, ...]:
    """All parts that this machine can measure; says which it cannot."""
    from hwsim.execute.cuda.availability import why_not

    reason = why_not()
    if reason is None:
        return PARTS
    click.echo(f"hwsim: the part gpu is left out: {reason}", err=True)
    return tuple(part for part in PARTS if part != "gpu")


def _measurements(programs: tuple[Path, ...], batch: int, rounds: int) -> dict[str, Callable[[], Table]]:
    from hwsim.bench.first_call import first_call
    from hwsim.bench.gpu import gpu
    from hwsim.bench.growth import growth
    from hwsim.bench.networks import networks
    from hwsim.bench.units import units

    def chosen() -> list[Program]:
        return [open_program(path) for path in programs] or _default_programs()

    return {
        "networks": lambda: networks(chosen(), batch, rounds),
        "gpu": lambda: gpu(chosen(), rounds),
        "units": lambda: units(rounds),
        "growth": lambda: growth(rounds),
        "first-call": lambda: first_call(rounds),
    }


def _default_programs() -> list[Program]:
    from hwsim.quantize.recipe import fq_vit

    return [open_program(None), _deit_tiny(fq_vit(calibration_batch=8)), _deit_tiny(_short_adalog())]


def _short_adalog() -> Recipe:
    """AdaLog at 4/4/4 by a search of seconds: the time of a program does not depend on how good its scales are."""
    from hwsim.quantize.adalog import adalog
    from hwsim.quantize.search.settings import PairSearch

    search = PairSearch("alternating", candidates=16, rounds=1, values=1 << 14)
    return replace(adalog(calibration_batch=2), name="adalog 4/4/4 short search", search=search)


def _deit_tiny(recipe: Recipe) -> Program:
    """DeiT-Tiny with random weights, on a batch of noise, kept under build/: the time does not depend on them."""
    import numpy as np

    from hwsim.identity import code_digest
    from hwsim.networks.load import load_network
    from hwsim.program import load_program, save_program
    from hwsim.quantize.calibrate import calibrate
    from hwsim.quantize.lowering import lower

    name = "deit_tiny_patch16_224"
    path = BUILD / "programs" / f"{name}-random-{recipe.file_name}-{code_digest()}.safetensors"
    if not path.exists():
        click.echo(f"calibrating {name} with random weights ({recipe.name}), kept as {path}", err=True)
        graph = load_network(name, random_weights=0)
        images = np.random.default_rng(0).integers(
            0, 256, (recipe.calibration_batch, *graph.image_size), dtype=np.uint8
        )
        save_program(lower(calibrate(graph, images, recipe)), path)
    return load_program(path)
