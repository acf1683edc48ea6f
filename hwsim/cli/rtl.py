"""``hwsim rtl``: the Verilog of a unit, and what goes with it into a foreign flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from golden.errors import HwsimError
from golden.files import write_atomically
from hwsim.cli.display import table
from hwsim.cli.hardware import hardware_layers
from hwsim.cli.source import BUILD, evaluation_images, open_program, program_option

if TYPE_CHECKING:
    from hwsim.program import Program
    from hwsim.unit_vectors import UnitLayer
    from rtl.package import BenchLayer
    from rtl.verilog import Facts


@click.command("rtl")
@click.argument("unit")
@program_option
@click.option(
    "--layer", "layers", multiple=True, help="Layers that the unit must serve.  [default: all that have the unit]"
)
@click.option("--lanes", default=1, show_default=True, type=click.IntRange(1, 64), help="Elements a clock cycle.")
@click.option("--baked", is_flag=True, help="Bake in the constants of the (single) layer instead of loading them.")
@click.option("--name", help="Module name.  [default: UNIT]")
@click.option("--data", type=click.Path(path_type=Path), help="Images of the bench.  [default: the embedded test set]")
@click.option(
    "--bench-rows",
    default=16,
    show_default=True,
    type=click.IntRange(0),
    help="Rows of a test image a layer for the self-checking bench; 0 for no bench.",
)
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
    data: Path | None,
    bench_rows: int,
    output: Path,
) -> None:
    """Write the Verilog of UNIT, and what a foreign flow needs with it.

    UNIT is a kind such as log_softmax, layernorm, lookup or log2_matmul. By default one unit is
    built that serves all the layers, its constants loaded at run time; their write words are
    written beside it as .hex, one file a layer. Layers that differ in what a unit cannot load, such
    as the length of a normalised row, get units of their own, UNIT_1, UNIT_2 and so on. The ports
    are AXI4-Stream.

    Beside the Verilog: a page of facts, a self-checking SystemVerilog bench with its .hex files
    (activations of the first test image), a FuseSoC core file and a Vivado script.
    """
    program = open_program(program_path)
    chosen = hardware_layers(program, layers, [unit])
    if baked and len(chosen) != 1:
        raise HwsimError(
            f"--baked takes the constants of one layer, {len(chosen)} are chosen; name one with --layer, such as "
            f"{chosen[0].name}"
        )
    made = modules(chosen, name)
    for module, served in made.items():
        facts, files = write_unit(program, served, lanes, output, module, baked, data, bench_rows)
        _show(facts)
        shown = [file for file in files if not file.endswith(".hex")]
        for file in shown:
            click.echo(f"wrote {output / file}")
        click.echo(f"and {len(files) - len(shown)} .hex files")
    if len(made) > 1:
        click.echo(f"{len(made)} modules, as one cannot serve all layers:")
        for module, served in made.items():
            click.echo(f"{module} serves {', '.join(layer.name for layer in served)}")
    if bench_rows and not _has_images(program, data):
        click.echo(f"no bench: {program.network} needs test images, give them with --data FOLDER")


def modules(layers: Sequence[UnitLayer], name: str | None = None) -> dict[str, list[UnitLayer]]:
    """Layers that one unit can serve, by module name: as in cosimulation, or a name, numbered if it is of several."""
    from rtl import catalog
    from sim_tests.cosim import module_names

    groups: dict[tuple[object, ...], list[UnitLayer]] = {}
    for layer in layers:
        groups.setdefault(catalog.group_key(layer.spec), []).append(layer)
    names = module_names(list(groups))
    if name is not None:
        names = {key: name if len(groups) == 1 else f"{name}_{place}" for place, key in enumerate(groups, 1)}
    return {names[key]: found for key, found in groups.items()}


def _has_images(program: Program, data: Path | None) -> bool:
    from hwsim.networks.embedded import NETWORKS

    return data is not None or program.network in NETWORKS


def write_unit(
    program: Program,
    layers: Sequence[UnitLayer],
    lanes: int,
    output: Path,
    module: str,
    baked: bool = False,
    data: Path | None = None,
    bench_rows: int = 16,
) -> tuple[Facts, list[str]]:
    """Write the Verilog of the unit that serves some layers, and what a foreign flow needs with it.

    Returns
    -------
    facts : Facts
    files : list of str
        Names in the folder.

    Raises
    ------
    HwsimError
        One unit cannot serve the layers, or a file cannot be written.
    """
    from rtl import catalog, package, verilog

    first = layers[0].spec
    if baked:
        hardware = catalog.entry(first.kind).unit(first, lanes=lanes, constants=layers[0].constants)
    else:
        hardware = catalog.covering([(layer.spec, layer.constants) for layer in layers], lanes=lanes)
    facts = verilog.facts(hardware, module)
    files = {f"{module}.v": verilog.export(hardware, module), f"{module}.md": facts.markdown()}
    bench: Mapping[str, str] = {}
    if bench_rows and _has_images(program, data):
        bench = package.bench(hardware, module, _bench_layers(program, layers, hardware, bench_rows, data))
    files |= bench
    files[f"{module}.core"] = package.fusesoc_core(hardware, module, list(bench))
    files[f"{module}.tcl"] = package.vivado_script(module, list(bench))
    if not baked:
        from sim_tests.beats import words_of

        port = hardware.w.payload
        for layer in layers:
            words = words_of(hardware.writes(layer.spec, layer.constants), len(port.address), len(port.data))
            lines = [bytes(word)[::-1].hex() for word in words]
            text = f"// {layer.name}: words for s_axis_write_tdata\n" + "\n".join(lines) + "\n"
            files[f"{module}.{layer.name}.constants.hex"] = text
    for file, text in files.items():
        write_atomically(output / file, text)
    return facts, list(files)


def _bench_layers(
    program: Program, layers: Sequence[UnitLayer], hardware: Any, rows: int, data: Path | None
) -> list[BenchLayer]:
    """Rows of each layer, spread evenly over the first test image, as the bench plays them."""
    import numpy as np

    from golden.vectors import Accumulating
    from hwsim.dump import dump_vectors
    from hwsim.unit_vectors import unit_vectors
    from rtl.allocation import REQUANTIZE
    from rtl.package import BenchLayer
    from sim_tests.selftest import requantizer_of
    from sim_tests.stimulus import stimulus

    padding = np.random.default_rng(0)
    result = []
    kind = hardware.spec.kind
    served = {layer.name for layer in layers}
    names = {layer.layer for layer in layers}
    nodes = [node for node in program.nodes if node.name in names]
    images = evaluation_images(program, data, 1 if data is None else None).images
    for vectors in unit_vectors(dump_vectors(program, images, [0], nodes)):
        if kind == REQUANTIZE and isinstance(vectors.spec, Accumulating) and vectors.accumulator is not None:
            vectors = requantizer_of(vectors)  # the one behind these sums
        if vectors.spec.kind != kind or vectors.layer not in served:
            continue
        play, expected = stimulus(hardware, vectors, padding)
        chosen = np.unique(np.linspace(0, expected.rows - 1, min(rows, expected.rows)).astype(int))

        def of_chosen_rows(beats: np.ndarray, chosen: np.ndarray = chosen, rows: int = expected.rows) -> np.ndarray:
            size = beats.shape[-1]
            return beats.reshape(rows, -1, size)[chosen].reshape(-1, size)

        beats, wanted = of_chosen_rows(play.beats), of_chosen_rows(expected.beats.packed())
        result.append(BenchLayer(vectors.layer, play.words, beats, wanted))
    return result


def _show(facts: Facts) -> None:
    rows = [(port.name, port.direction, port.width, port.meaning) for port in facts.ports]
    table(("port", "direction", "bits", "meaning"), rows, title=f"{facts.module}: {facts.summary}")
    click.echo(f"latency: {facts.latency} cycles; cycles a row: {facts.cycles_formula}")
    if facts.cycles_longest_row is not None:
        click.echo(f"a row of {facts.longest_row}: {facts.cycles_longest_row} cycles")
