"""``hwsim synth``: cells and clock of the units on FPGAs."""

from __future__ import annotations

import os
from pathlib import Path

import click

from golden.errors import HwsimError
from hwsim.cli.display import progress, table
from hwsim.cli.source import BUILD


def _numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Comma-separated whole numbers above 0."""
    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"{text!r} is no list of whole numbers above 0, such as 1,2,4")
    return tuple(dict.fromkeys(numbers))


@click.command("synth")
@click.argument("units", nargs=-1, metavar="[UNIT]...")
@click.option(
    "--lanes",
    default="1,2,4,8",
    show_default=True,
    callback=_numbers,
    metavar="N,N,...",
    help="Elements a clock cycle.",
)
@click.option(
    "--rows",
    callback=_numbers,
    metavar="N,N,...",
    help="Row lengths of the units built for one.  [default: 50,197,577,1025 for log_softmax, 197 for the others]",
)
@click.option(
    "--channels",
    default="192",
    show_default=True,
    callback=_numbers,
    metavar="N,N,...",
    help="Channels of the LayerNorm.",
)
@click.option(
    "--family",
    "families",
    multiple=True,
    default=["ecp5", "xilinx"],
    show_default=True,
    help="ecp5, xilinx (cell counts only) or ice40; may be repeated.",
)
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(0), help="Placements: seeds 1, 2, ...")
@click.option("--target-mhz", type=click.FloatRange(min=0, min_open=True), help="Fail if a median clock is below it.")
@click.option("--jobs", type=click.IntRange(1), help="Configurations at the same time.  [default: one a processor]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=BUILD / "synth", show_default=True, help="Folder."
)
def synth_command(
    units: tuple[str, ...],
    lanes: tuple[int, ...],
    rows: tuple[int, ...] | None,
    channels: tuple[int, ...],
    families: tuple[str, ...],
    seeds: int,
    target_mhz: float | None,
    jobs: int | None,
    output: Path,
) -> None:
    """Cells and clock of each UNIT on FPGAs; of all standard configurations without one.

    Exports the Verilog, synthesises it with Yosys, places and routes it with nextpnr, and writes
    synth.json and synth.md. Every finished point is kept in OUTPUT/points: a second run only reads them,
    and one that was interrupted goes on.
    """
    from concurrent.futures import ThreadPoolExecutor

    from golden.files import write_atomically
    from rtl.synthesis import families as known
    from rtl.synthesis.flow import DoesNotFit, check_target, implement, tool_versions
    from rtl.synthesis.standard import Point, points
    from rtl.synthesis.table import Measured, to_json, to_markdown
    from rtl.verilog import export

    chosen = points(units, lanes=lanes, rows=rows, channels=channels)
    targets = [known.family(name) for name in dict.fromkeys(families)]
    for target in targets:
        tool_versions(target)  # a missing tool is named before any work
    timed = [target for target in targets if target.place_and_route]
    if target_mhz is not None and (not timed or not seeds):
        raise HwsimError("--target-mhz needs a family with a clock (ecp5 or ice40) and at least one seed")
    steps = len(targets) + len(timed) * seeds
    numbers = range(1, seeds + 1)
    too_large: list[str] = []

    with progress("synthesising", len(chosen) * steps) as done:

        def measure(point: Point) -> Measured:
            unit = point.build()
            verilog = export(unit, point.unit)
            found = {}
            for target in targets:
                try:
                    found[target.name] = implement(
                        verilog, point.unit, target, seeds=numbers, folder=output / "points", done=lambda: done(1)
                    )
                except DoesNotFit as error:  # the others are measured and listed first
                    too_large.append(f"{point.lanes} lanes, row {point.row}: {error}")
            return Measured(point, unit, found)

        with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
            tasks = [pool.submit(measure, point) for point in chosen]
            try:
                measured = [task.result() for task in tasks]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    write_atomically(output / "synth.json", to_json(measured))
    write_atomically(output / "synth.md", to_markdown(measured, _command()))
    for target in targets:
        columns = ("unit", "row", "lanes", *target.resources, *(["Fmax MHz", "slowest", "fastest"] if seeds else []))
        lines = []
        for each in measured:
            if target.name not in each.implementations:
                continue
            implementation = each.implementations[target.name]
            spread = implementation.range_mhz
            clock = [] if not seeds else ["", "", ""] if spread is None else [implementation.median_mhz, *spread]
            cells = [implementation.cells[name] for name in target.resources]
            lines.append((each.point.unit, each.point.row, each.point.lanes, *cells, *clock))
        table(columns, lines, title=f"{target.name}: {target.part}")
    click.echo(f"wrote {output / 'synth.json'} and {output / 'synth.md'}")
    if too_large:
        rest = f" (and {len(too_large) - 1} more configurations)" if too_large[1:] else ""
        raise HwsimError(f"{min(too_large)}{rest}")
    if target_mhz is not None:
        for each in measured:
            for target in timed:
                check_target(each.implementations[target.name], target_mhz, each.name)


def _command() -> str:
    """The command line as it was given, but for what does not matter to the result."""
    context = click.get_current_context()
    words = ["hwsim synth"]
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE or name in (
            "output",
            "jobs",
        ):
            continue
        value = context.params[name]
        if isinstance(parameter, click.Argument):
            words += value
        elif parameter.multiple:
            words += [f"{parameter.opts[0]} {one}" for one in value]
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"
            words.append(f"{parameter.opts[0]} {text}")
    return " ".join(words)
