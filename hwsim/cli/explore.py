"""``hwsim explore`` and ``hwsim sensitivity``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from golden.errors import HwsimError
from hwsim.cli.cost import accelerator_options, parse_accelerator
from hwsim.cli.device import backends_on, program_device_option
from hwsim.cli.display import table
from hwsim.cli.source import (
    BUILD,
    calibration_source,
    evaluation_images,
    network_options,
    open_program,
    recipe_arguments,
    with_options,
)

if TYPE_CHECKING:
    from hwsim.explore.bench import Bench
    from hwsim.explore.records import Record, Store
    from hwsim.explore.sensitivity import Loss
    from hwsim.explore.sweep import Backend

COSTS = ("constant_bytes", "cycles")

bench_options = with_options(
    network_options,
    click.option(
        "--on",
        "on_data",
        type=click.Path(path_type=Path),
        help="Images to evaluate on.  [default: the embedded test set]",
    ),
    click.option("--on-images", type=click.IntRange(1), help="At most this many images to evaluate on."),
    click.option("--fake-quant", is_flag=True, help="Measure the fake-quantized networks too."),
    accelerator_options,
    click.option("--area", is_flag=True, help="Count the cells of the units of every point with Yosys."),
    click.option("--family", default="xilinx", show_default=True, help="Of the cells: xilinx, ecp5 or ice40."),
    program_device_option,
    click.option("--ray", "ray_address", metavar="ADDRESS", help="Measure on a Ray cluster."),
    click.option(
        "-o", "--output", type=click.Path(path_type=Path), default=BUILD / "explore", show_default=True, help="Folder."
    ),
)


def make_bench(
    network: str,
    checkpoint: Path | None,
    architecture: str | None,
    random_weights: int | None,
    data: Path | None,
    images: int | None,
    seed: int,
    on_data: Path | None,
    on_images: int | None,
    fake_quant: bool,
    area: bool,
    family: str,
    accelerator: Mapping[str, Any],
) -> Bench:
    """The bench that the options describe.

    Raises
    ------
    HwsimError
        A network, data set, accelerator or family that is not there or does not fit.
    """
    from hwsim.cli.hardware_cost import ProgramCosts
    from hwsim.explore.bench import Bench
    from hwsim.identity import code_digest
    from rtl.synthesis import families

    families.family(family)
    made = parse_accelerator(**accelerator)
    graph, image_set = calibration_source(network, checkpoint, architecture, data, images, seed, random_weights)
    evaluation = evaluation_images(graph, on_data, on_images)
    costs = ProgramCosts(made, family if area else None, (BUILD / "synth" / "points").resolve())
    return Bench(graph, image_set.images, evaluation, code_digest(), costs, costs.setting, fake_quant)


@click.command("explore")
@bench_options
@click.option(
    "--vary",
    "settings",
    multiple=True,
    metavar="FIELD=VALUES",
    help='A field of the recipe and its values, such as "weight_bits=4..8", "recipe=fq-vit,ptq4vit", '
    '"point.gelu=uniform:6 twin-gelu:6".',
)
@click.option(
    "--program",
    "programs",
    multiple=True,
    metavar="FILE|NAME",
    help="A finished program of the network as one point more, such as embedded-q-vit-2.",
)
@click.option("--search", "kind", default="grid", show_default=True, help="grid, random or nsga2 (Optuna).")
@click.option("--points", "count", type=click.IntRange(1), help="Points at most.  [default: the whole grid]")
@click.option("--search-seed", default=0, show_default=True, type=int, help="Of random and nsga2.")
@click.option(
    "--against",
    help="Costs that fronts are drawn against and that nsga2 makes small (frames_a_second large).  "
    f"[default: {','.join(COSTS)}, and with --area the LUTs]",
)
@click.option("--pick", metavar="ID", help="Write the program and the Verilog of a finished point.")
def explore_command(
    settings: tuple[str, ...],
    programs: tuple[str, ...],
    kind: str,
    count: int | None,
    search_seed: int,
    against: str | None,
    pick: str | None,
    device: str,
    ray_address: str | None,
    output: Path,
    **options: Any,
) -> None:
    """Measure many recipes on a network: accuracy, bytes, cycles and cells, and their Pareto fronts.

    Writes a data frame (Parquet and CSV), the fronts as a picture and as an HTML page. Every point is kept as soon as
    it is measured: a run that was stopped goes on where it was, and no point is measured twice.
    """
    from hwsim.explore.records import TOP1, Store
    from hwsim.explore.search import proposals
    from hwsim.explore.space import parse_space
    from hwsim.explore.sweep import measure_program, sweep

    # What can be refused at once is, before networks and images are loaded. Finished programs alone need no search.
    costs = default_costs(options["family"] if options["area"] else None)
    if against is not None:
        costs = [cost.strip() for cost in against.split(",") if cost.strip()]
    space = search = None
    if pick is None and (settings or not programs):
        space = parse_space(settings)
        search = proposals(kind, space, count, search_seed, 1 + len(costs))
    calibrate = ["hwsim", "calibrate", *network_arguments(options)]
    bench = bench_of(options)
    if space is not None:
        space.check(bench.graph)
    store = Store(output / "points", bench.setting)
    if pick is not None:
        _pick(bench, store, pick, output / "picked")
        return
    check_costs(costs, bench)
    opened = {name: open_program(Path(name)) for name in programs}
    backend = backend_of(ray_address, device)
    records = []
    expected = len(opened) + count if count and kind == "nsga2" and search is not None else 0
    with PointsBar(bench.graph.name, stored(store), expected) as bar:
        bar.started(len(opened))
        for name, program in opened.items():
            records.append(measure_program(bench, store, name, program, device))
            bar.done(records[-1])
        if search is not None:
            records += sweep(bench, search, store, backend, (TOP1, *costs), bar.started, bar.done)
    write_results(records, costs, bench, output, calibrate)


def stored(store: Store) -> Callable[[str], bool]:
    """Which points are in a store now, by their keys."""
    return {path.stem for path in store.folder.glob("*.json")}.__contains__


def network_arguments(options: Mapping[str, Any]) -> list[str]:
    """The `network_options` among the values of a command's options, as they are written."""
    arguments = [options["network"]]
    for option in network_options(click.Command("network")).params:
        value = options[str(option.name)]
        if isinstance(option, click.Option) and value not in (None, option.default):
            arguments += [option.opts[0], str(value)]
    return arguments


def default_costs(family: str | None) -> list[str]:
    """What fronts are drawn against unless others are named; with a family its LUTs (or what it calls them) too.

    Raises
    ------
    HwsimError
        An unknown family.
    """
    from rtl.synthesis import families

    if family is None:
        return list(COSTS)
    # Every family names its logic first: LUT, COMB, LC.
    return [*COSTS, f"{family}_{families.family(family).resources[0].lower()}"]


def bench_of(options: dict[str, Any]) -> Bench:
    """The bench of a command's options, those of the accelerator among them."""
    names = ("array", "mac_bits", "lanes_text", "memory", "bandwidth", "clock")
    accelerator = {name: options.pop(name) for name in names}
    return make_bench(**options, accelerator=accelerator)


def check_costs(costs: Sequence[str], bench: Bench) -> None:
    """Refuse names that no point will have, before any is measured.

    Raises
    ------
    HwsimError
        Names the cost and those that there are.
    """
    from hwsim.cli.hardware_cost import ProgramCosts

    assert isinstance(bench.costs, ProgramCosts)
    for cost in costs:
        if cost not in bench.costs.names:
            raise HwsimError(
                f"--against: there is no cost {cost!r}; choose among {', '.join(bench.costs.names)}, and with --area "
                "the cells of --family"
            )


def backend_of(ray_address: str | None, device: str) -> Backend:
    """Where points are measured: here, or on a Ray cluster.

    Raises
    ------
    HwsimError
        A device of this machine and a cluster.
    """
    if ray_address is None:
        from hwsim.explore.sweep import Local

        backends_on(device)  # says once where there is no such GPU
        return Local(device)
    if device != "cpu":
        raise HwsimError(f"--ray: tasks run on the cluster's GPUs where it has some; leave --device {device} out")
    from hwsim.explore.cluster import Cluster

    return Cluster(ray_address)


def write_results(
    records: Sequence[Record], costs: Sequence[str], bench: Bench, output: Path, calibrate: Sequence[str]
) -> None:
    """Data frame, fronts, and what to say about them.

    Parameters
    ----------
    records : sequence of Record
    costs : sequence of str
    bench : Bench
    output : Path
        Folder.
    calibrate : sequence of str
        The command that calibrates the network, to which a point's recipe is added.

    Raises
    ------
    HwsimError
        No point has figures.
    """
    from golden.files import write_atomically
    from hwsim.explore.fronts import frame, pareto
    from hwsim.explore.pages import front_page, front_picture
    from hwsim.explore.sweep import PROGRAM

    def calibrating(record: Record) -> str | None:
        recipe = None if PROGRAM in record.point else recipe_arguments(record.point)
        return None if recipe is None else shlex.join([*calibrate, *recipe])

    name = bench.graph.name
    failed = [record for record in records if record.error]
    for record in failed:
        point = " ".join(f"{field}={value}" for field, value in record.point.items())
        again = "; the next run tries again" if record.passing else ""
        click.echo(f"no figures: {point}: {record.error}{again}", err=True)
    measured = [record for record in records if not record.error]
    if not measured:
        raise HwsimError(f"none of the {len(records)} points has figures, for the reasons above; no file was changed")
    found = frame(records)
    write_atomically(output / f"{name}.csv", found.to_csv(index=False))
    write_atomically(output / f"{name}.parquet", found.astype({"error": str}).to_parquet(index=False))
    command = shlex.join(["hwsim", *sys.argv[1:]])
    title = f"{name}: {len(measured)} recipes on {measured[0].images} images"
    write_atomically(output / f"{name}.png", front_picture(measured, costs, title))
    write_atomically(output / f"{name}.html", front_page(records, costs, title, command, calibrating))
    _warn_of_missing_units(measured, costs, bench)
    intervals = found.set_index("id")
    for cost in costs:
        rows = [
            (
                record.key,
                " ".join(f"{field}={value}" for field, value in record.point.items()),
                record.top1,
                f"{intervals.top1_low[record.key]:.2f} - {intervals.top1_high[record.key]:.2f}",
                record.costs[cost],
                "yes" if better else "no",
            )
            for record, better in pareto(measured, cost)
        ]
        columns = ("id", "point", "top-1 %", "95 % interval", cost.replace("_", " "), "significantly better")
        table(columns, rows, title=f"front against {cost.replace('_', ' ')}")
    click.echo(f"{len(records)} points, {len(failed)} without figures")
    click.echo(f"wrote {output / name}.csv, .parquet, .png and .html")


def _warn_of_missing_units(measured: Sequence[Record], costs: Sequence[str], bench: Bench) -> None:
    """Say where a front against cells compares points that lack different units."""
    from hwsim.cli.hardware_cost import ProgramCosts
    from hwsim.explore.fronts import missing_units

    if not isinstance(bench.costs, ProgramCosts):
        return  # costs of another kind have no cells
    cells = [cost for cost in costs if cost in bench.costs.cells]
    groups = missing_units(measured)
    if cells and len(groups) > 1:
        said = "; ".join(
            f"{len(records)} without a unit for {', '.join(kinds) or 'nothing'}, such as {records[0].recipe}"
            for kinds, records in groups.items()
        )
        click.echo(
            f"warning: {', '.join(cells)} of these points do not compare: layers without a unit in hardware count no "
            f"cells, and they are of different kinds: {said}; see layers_without_hardware in the data frame",
            err=True,
        )


@click.command("sensitivity")
@bench_options
@click.option("--recipe", default="fq-vit", show_default=True, help="Published system of the base.")
@click.option("--bits", default="8/8/8", show_default=True, help="Widths of the base.")
@click.option("--widths", default="6,4,3", show_default=True, help="Widths that every layer gets alone.")
@click.option(
    "--by", default="layer", show_default=True, help="Vary a layer, a block or an operand of the attention at a time."
)
@click.option(
    "--budget",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Points of top-1 that the mixed precision may lose.",
)
def sensitivity_command(
    recipe: str,
    bits: str,
    widths: str,
    by: str,
    budget: float,
    device: str,
    ray_address: str | None,
    output: Path,
    **options: Any,
) -> None:
    """Measure what every layer loses at every width, alone, and mix widths within a budget.

    A layer is its weights and the point that it reads; all others stay as in the base, and so do the kinds of the
    quantizers. An operand of the attention is a point alone. Points are kept and shared with `hwsim explore`.
    """
    from golden.files import write_atomically
    from hwsim.explore.records import Store
    from hwsim.explore.search import at_once
    from hwsim.explore.sensitivity import layers_of, losses, most_within, narrowed, narrowings, with_widths
    from hwsim.explore.space import WIDTHS, recipe_of, unique
    from hwsim.explore.sweep import sweep
    from hwsim.quantize.recipe import parse_bits

    try:
        chosen = [int(width) for width in widths.split(",")]
    except ValueError:
        raise HwsimError(f"--widths must be numbers such as 6,4,3, not {widths!r}") from None
    bench = bench_of(options)
    store = Store(output / "points", bench.setting)
    base = {"recipe": recipe, **dict(zip(WIDTHS, parse_bits(bits), strict=True))}
    layers = layers_of(bench.graph, recipe_of(base), by)
    keys = [(layer.name, width) for layer in layers for width in chosen]
    points = [base, *(narrowed(base, layer, width) for layer in layers for width in chosen)]
    with PointsBar(bench.graph.name, stored(store)) as bar:
        backend = backend_of(ray_address, device)
        first, *others = sweep(bench, at_once(points), store, backend, started=bar.started, progress=bar.done)
        if first.error:
            raise HwsimError(f"the base has no figures: {first.error}")
        found = losses(first, dict(zip(keys, others, strict=True)))

        def measured(chosen: Mapping[str, Loss]) -> Record:
            point = unique([with_widths(base, layers, chosen)])
            (record,) = sweep(bench, at_once(point), store, backend, started=bar.started, progress=bar.done)
            return record

        def lost(chosen: Mapping[str, Loss]) -> float:
            record = measured(chosen)
            return float("inf") if record.error else first.top1 - record.top1

        steps = narrowings(found)
        best = steps[most_within(steps, budget, lost)]
        last = measured(best)
    table(
        ("layer", *(f"{width} bits" for width in chosen)),
        [
            (layer.name, *(_lost([loss for loss in found if (loss.layer, loss.bits) == (layer.name, width)])
                           for width in chosen))
            for layer in layers
        ],
        title=f"{bench.graph.name}, {first.recipe}: {first.top1:.2f} %; points lost by a layer alone "
        "(* significant, exact McNemar test, 5 %)",
    )  # fmt: skip
    for (name, width), record in zip(keys, others, strict=True):
        if record.error:
            click.echo(f"no figures: {name} at {width} bits: {record.error}", err=True)
    said = ", ".join(f"{name} {loss.bits}" for name, loss in best.items())
    click.echo(f"mixed precision within {budget:g} points: {said or 'nothing can be narrowed'}")
    sizes = first.costs["constant_bytes"], last.costs["constant_bytes"]
    click.echo(
        f"{last.top1:.2f} % ({last.top1 - first.top1:+.2f}), constants {sizes[1]:,.0f} bytes "
        f"({100 * (1 - sizes[1] / sizes[0]):.1f} % less); id {last.key}"
    )
    import pandas as pd

    path = output / f"{bench.graph.name}-sensitivity.csv"
    columns = ["layer", "bits", "lost", "significant", "saved_bytes"]
    lines = [{name: getattr(loss, name) for name in columns} for loss in found]
    write_atomically(path, pd.DataFrame(lines, columns=columns).to_csv(index=False))
    click.echo(f"wrote {path}")


def _lost(found: Sequence[Loss]) -> str:
    return f"{found[0].lost:+.2f}{'*' if found[0].significant else ''}" if found else "-"


def _pick(bench: Bench, store: Store, key: str, output: Path) -> None:
    """Program and Verilog of a finished point."""
    from hwsim.cli.hardware_cost import ProgramCosts, hardware_modules, hardware_of
    from hwsim.cli.rtl import write_unit
    from hwsim.explore.space import recipe_of
    from hwsim.explore.sweep import PROGRAM
    from hwsim.program import save_program

    record = store.read(key)
    if record is None:
        known = len(list(store.folder.glob("*.json")))
        raise HwsimError(f"there is no point {key} in {store.folder} ({known} are there); its id is in the data frame")
    if PROGRAM in record.point:
        name = record.point[PROGRAM]
        raise HwsimError(f"{key} is the finished program {name}; for its Verilog: hwsim rtl UNIT --program {name}")
    recipe = recipe_of(record.point)
    if record.error or store.key(recipe) != key:
        why = record.error or "it was measured with other images, another network or another version"
        raise HwsimError(f"{key}: {why}; give the same options as to the exploration, or explore again")
    program, _, _ = bench.prepare(recipe)
    folder = output / key
    save_program(program, folder / "program.safetensors")
    click.echo(f"{record.recipe}: {record.top1:.2f} % of {record.images} images")
    click.echo(f"wrote {folder / 'program.safetensors'}")
    assert isinstance(bench.costs, ProgramCosts)
    # What cycles and cells were computed of: the accelerator's lanes, and the requantizers behind sums too.
    for module in hardware_modules(program, hardware_of(program, bench.costs.accelerator)):
        write_unit(program, module.layers, module.lanes, folder / "rtl" / module.name, module.name)
        served = len({layer.layer for layer in module.layers})
        click.echo(f"wrote {folder / 'rtl' / module.name}: lanes {module.lanes}, layers {served}")


class PointsBar:
    """Progress of a sweep on standard error: points measured, time left, the last one's accuracy.

    Points that were read from the store are no work: they leave the total instead of counting as done.

    Parameters
    ----------
    label : str
    known : callable
        Is the record of this key in the store before the sweep?
    expected : int
        Points that the sweep will come to where its batches do not tell at once, as those of a search do not.
    """

    def __init__(self, label: str, known: Callable[[str], bool], expected: int = 0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as TimeLeft

        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeLeft(),
            TextColumn("{task.fields[last]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.known = known
        self.total = self.expected = expected
        self.seen = 0
        self.task = self.bar.add_task(f"exploring {label}", total=self.total, last="")

    def __enter__(self) -> PointsBar:
        self.bar.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.bar.stop()

    def started(self, count: int) -> None:
        """So many points more, of those that were expected first."""
        self.seen += count
        self.total += max(0, self.seen - max(self.expected, self.seen - count))
        self.bar.update(self.task, total=self.total)

    def done(self, record: Record) -> None:
        """One point is finished."""
        last = "failed" if record.error else f"{record.recipe}: {record.top1:.2f} %"
        if self.known(record.key):
            self.total -= 1
            self.bar.update(self.task, total=self.total, last=last)
        else:
            self.bar.update(self.task, advance=1, last=last)
