"""``hwsim cost``: operations, bytes, FixOPs, cycles and area of a program; sizes and FixOPs of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from golden.errors import HwsimError
from hwsim.cli.display import progress, table
from hwsim.cli.source import BUILD, open_program, with_options

if TYPE_CHECKING:
    from hwsim.cost.accelerator import Accelerator
    from hwsim.program import Program

accelerator_options = with_options(
    click.option("--array", default="16x16", show_default=True, metavar="ROWSxCOLUMNS", help="MAC array."),
    click.option("--mac-bits", default=8, show_default=True, type=int, help="Widest operand of a MAC."),
    click.option(
        "--lanes",
        "lanes_text",
        default="4",
        show_default=True,
        metavar="N[,UNIT=N...]",
        help="Elements a cycle of every other unit, such as 4,log2_matmul=16.",
    ),
    click.option("--memory", default=512, show_default=True, type=int, metavar="KIB", help="Memory on the chip."),
    click.option(
        "--bandwidth", default=1.0, show_default=True, type=float, metavar="GB/S", help="Of the outside memory."
    ),
    click.option("--clock", default=100.0, show_default=True, type=float, metavar="MHZ", help="Of the accelerator."),
)


def parse_accelerator(
    array: str, mac_bits: int, lanes_text: str, memory: int, bandwidth: float, clock: float
) -> Accelerator:
    """The accelerator that the options describe.

    Raises
    ------
    HwsimError
        A text that is none of the form, an unknown unit, or a value out of range.
    """
    from hwsim.cost.accelerator import Accelerator
    from rtl import catalog

    try:
        rows, columns = (int(part) for part in array.split("x"))
    except ValueError:
        raise HwsimError(f"--array must be rows and columns such as 16x16, not {array!r}") from None
    lanes, lanes_of = 4, {}
    for part in lanes_text.split(","):
        kind, _, number = part.rpartition("=")
        if kind:
            catalog.entry(kind)
        try:
            value = int(number)
        except ValueError:
            raise HwsimError(f"--lanes must be a number and units such as 4,log2_matmul=16, not {part!r}") from None
        if kind:
            lanes_of[kind] = value
        else:
            lanes = value
    return Accelerator(
        array_rows=rows,
        array_columns=columns,
        mac_bits=mac_bits,
        lanes=lanes,
        lanes_of=lanes_of,
        memory_bytes=memory << 10 if memory > 0 else memory,
        bandwidth=bandwidth,
        clock_mhz=clock,
    )


@click.command("cost")
@click.argument("source", required=False, metavar="[PROGRAM|NETWORK]")
@accelerator_options
@click.option("--area/--no-area", default=False, help="Count the cells of the units with Yosys.")
@click.option("--family", default="xilinx", show_default=True, help="Of the cells: xilinx, ecp5 or ice40.")
@click.option("--layers/--no-layers", default=False, help="Also list every layer.")
@click.option("--bits", metavar="W/A/ATTN", help="Of a NETWORK: sizes and FixOPs at these widths, such as 4/4/4.")
@click.option(
    "--first-last", type=int, metavar="BITS", help="Of a NETWORK: first and last layer.  [default: the others']"
)
@click.option(
    "--rest", default=32, show_default=True, type=int, metavar="BITS", help="Of a NETWORK: biases, norms, embeddings."
)
@click.option("--published", metavar="TABLE", help="Compare the cost columns of a paper's table: adalog or q-vit.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write everything as JSON.")
@click.option(
    "--csv", "csv_path", type=click.Path(path_type=Path), help="Also write the layers (or the comparison) as CSV."
)
def cost_command(
    source: str | None,
    area: bool,
    family: str,
    layers: bool,
    bits: str | None,
    first_last: int | None,
    rest: int,
    published: str | None,
    json_path: Path | None,
    csv_path: Path | None,
    **accelerator: Any,
) -> None:
    """What a PROGRAM costs: operations, bytes, FixOPs, and cycles on an accelerator made of the units.

    Everything is computed from the program. With the name of a NETWORK and --bits: sizes and FixOPs of its structure
    at these widths. Without both, the program of the embedded network.
    """
    if published is not None:
        if source is not None or bits is not None:
            raise HwsimError("--published compares the networks of a paper; leave NETWORK and --bits out")
        report, lines = _published(published)
    elif source is not None and not _is_program(source):
        report, lines = _network(source, bits, first_last, rest)
    else:
        if bits is not None or first_last is not None:
            raise HwsimError("--bits and --first-last are of a NETWORK; a program has its own widths")
        made = parse_accelerator(**accelerator)
        program = open_program(None if source is None else Path(source))
        report, lines = _program(program, made, family if area else None, layers)
    _write(json_path, csv_path, report, lines)


def _is_program(source: str) -> bool:
    """Whether it names a program and no network."""
    from hwsim.shipped import shipped_programs

    return Path(source).suffix == ".safetensors" or Path(source).exists() or source in shipped_programs()


def _program(
    program: Program, accelerator: Accelerator, family: str | None, show_layers: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from hwsim.cli.hardware_cost import hardware_of, program_area, program_cycles
    from hwsim.cost.report import layer_lines, program_report
    from rtl.synthesis import families

    target = None if family is None else families.family(family)
    spent = program_cycles(program, accelerator)
    report, lines = program_report(program, spent), layer_lines(program, spent)
    title = f"{program.network}, {program.recipe}"
    table(
        ("operation", "operand bits", "a picture"),
        _operation_rows(report["operations"]),
        title=title,
    )
    table(("bytes", "count"), [(name.replace("_", " "), size) for name, size in report["bytes"].items()])
    table(
        ("unit", "layers", "cycles", "% of all", "waits for memory", "basis"),
        [
            (each["unit"], each["layers"], each["cycles"], each["percent"], each["memory_bound"], each["basis"])
            for each in report["units"]
        ],
    )
    if show_layers:
        columns = ("layer", "unit", "compute", "memory", "cycles", "bound", "read", "written")
        table(columns, [tuple(line[name] for name in columns) for line in lines])
    peak = report["bytes"]["peak_activations"]
    click.echo(f"FixOPs: {report['fixops'] / 1e6:.3f} M; most activations at once: {peak:,} bytes, {report['peak_at']}")
    click.echo(
        f"{spent.cycles:,} cycles a picture, {spent.frames_a_second:,.1f} pictures/s at {accelerator.clock_mhz:g} MHz, "
        f"bound by {spent.bound}; {spent.traffic:,} bytes a picture from and to the outside memory"
    )
    if target is not None:
        hardware = hardware_of(program, accelerator)
        with progress("synthesising", 1) as done:
            found = program_area(hardware, target, BUILD / "synth" / "points")
            done(1)
        rows = [
            (each.kind, each.lanes, each.layers, *(each.cells[name] for name in target.resources)) for each in found
        ]
        sums = [sum(each.cells[name] for each in found) for name in target.resources]
        table(
            ("unit", "lanes", "layers", *target.resources),
            [*rows, ("all", "", "", *sums)],
            title=f"{target.name}: {target.part}",
        )
        report["area"] = {
            "family": target.name,
            "units": [{"unit": each.kind, "lanes": each.lanes, "layers": each.layers, **each.cells} for each in found],
            "total": dict(zip(target.resources, sums, strict=True)),
        }
    return report, lines


def _operation_rows(operations: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """Steps of matrix products by their widths; of every other kind all together, with the range of widths."""
    from hwsim.cost.operations import PRODUCTS

    rows = [
        (each["kind"], " x ".join(map(str, each["widths"])), each["count"])
        for each in operations
        if each["kind"] in PRODUCTS
    ]
    for kind in dict.fromkeys(each["kind"] for each in operations if each["kind"] not in PRODUCTS):
        same = [each for each in operations if each["kind"] == kind]
        widest = [max(each["widths"]) for each in same]
        bits = f"{min(widest)} to {max(widest)}" if min(widest) < max(widest) else str(widest[0])
        rows.append((kind, bits, sum(each["count"] for each in same)))
    return rows


def _network(
    name: str, bits: str | None, first_last: int | None, rest: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from hwsim.cost.fixops import FLOAT_BITS, fixops
    from hwsim.cost.network import FLOAT, Widths, network_products, network_size

    if bits is None:
        raise HwsimError(f"{name}: there is no such file; for the structure of a network give --bits, such as 4/4/4")
    widths = Widths(*_three(bits), first_last=first_last, rest=rest)
    graph = _structure(name)
    lines, rows = [], []
    for label, each in (("float", FLOAT), (bits, widths)):
        size, products = network_size(graph, each), network_products(graph, each)
        total = float(fixops(products.values()))
        rows.append((label, total / 1e9, size.weights // 8, size.rest // 8, size.bytes, size.bytes / 2**20))
        lines += [
            {
                "widths": label,
                "layer": layer,
                "multiplications": product.count,
                "a_bits": product.widths[0],
                "b_bits": product.widths[1],
                "fixops": float(fixops([product])),
            }
            for layer, product in products.items()
        ]
    multiplications = sum(each.count for each in network_products(graph, FLOAT).values())
    columns = ("widths", "FixOPs (G)", "weight bytes", "other bytes", "bytes", "MiB")
    table(
        columns,
        rows,
        title=f"{name}: {multiplications:,} multiplications a picture",
    )
    keys = ("widths", "fixops_giga", "weight_bytes", "other_bytes", "bytes", "mebibytes")
    return {
        "network": name,
        "float_bits": FLOAT_BITS,
        "sizes": [dict(zip(keys, row, strict=True)) for row in rows],
    }, lines


def _three(bits: str) -> tuple[int, int, int]:
    """Widths of weights, activations and attention, or one for all of them."""
    from hwsim.quantize.recipe import full_bits

    try:
        weight, activation, attention = (int(part) for part in full_bits(bits).split("/"))
    except ValueError:
        raise HwsimError(f"--bits must be one width, or three such as 4/4/4, not {bits!r}") from None
    return weight, activation, attention


def _published(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from hwsim.cost.published import compare, networks_of

    names = networks_of(name)
    found = []
    with progress("building", len(names)) as done:
        for network in names:
            found += compare(name, _structure(network))
            done(1)
    lines = [
        {
            "network": each.network,
            "row": each.row,
            "column": each.column,
            "rule": each.rule,
            "printed": each.printed,
            "ours": each.ours,
            "value": float(each.value),
            "meets": each.meets,
        }
        for each in found
    ]
    for column in dict.fromkeys(each.column for each in found):
        rules = dict.fromkeys(each.rule for each in found if each.column == column)
        rows: dict[tuple[str, str, str], list[str]] = {}
        for each in found:
            if each.column == column:
                mark = " =" if each.meets else ""
                rows.setdefault((each.network, each.row, each.printed), []).append(f"{float(each.value):.5g}{mark}")
        table(
            ("network", "row", "printed", *rules),
            [(*key, *values) for key, values in rows.items()],
            title=f"{name}, {column}; = has all printed digits",
        )
    return {"table": name, "figures": lines}, lines


def _structure(name: str) -> Any:
    """The float graph of a network; its weights do not matter here, so that none are downloaded."""
    from hwsim.networks.load import load_network

    return load_network(name, random_weights=0)


def _write(
    json_path: Path | None, csv_path: Path | None, report: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]
) -> None:
    from golden.files import write_atomically

    if json_path is not None:
        import json

        write_atomically(json_path, json.dumps({**report, "lines": list(lines)}, indent=1) + "\n")
        click.echo(f"wrote {json_path}")
    if csv_path is not None:
        import csv
        import io

        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        write_atomically(csv_path, text.getvalue())
        click.echo(f"wrote {csv_path}")
