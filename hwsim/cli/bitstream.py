"""``hwsim bitstream``: a self-test of the units for a board, simulated first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import click

from golden.errors import HwsimError
from hwsim.cli.display import progress, table
from hwsim.cli.source import BUILD, evaluation_images, open_program, program_option

if TYPE_CHECKING:
    from golden.vectors import UnitVectors
    from hwsim.program import Program
    from sim_tests.selftest import Selftest

# What is only there when it belongs to the design that was asked for.
_RESULTS = ("selftest.bit", "selftest.svf", "selftest.dfu", "report.json", "report.md", "uart.txt")


@click.command("bitstream")
@click.option("--board", "board_name", default="ulx3s-85f", show_default=True, help="Board; an unknown one lists all.")
@program_option
@click.option(
    "--also",
    "more_programs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Another program, for units that the first one lacks.",
)
@click.option("--layer", default="blocks.0", show_default=True, help="Where the activations come from.")
@click.option("--unit", "units", multiple=True, help="Unit kinds to test.  [default: all of the layer]")
@click.option("--image", default=0, show_default=True, type=click.IntRange(0), help="Image of the data set.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of images.  [default: the embedded test set]")
@click.option(
    "--vectors",
    "vector_files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Use dumped vector files instead of a program.",
)
@click.option("--beats", default=4096, show_default=True, type=click.IntRange(1, 16384), help="Most beats a unit.")
@click.option("--lanes", default=1, show_default=True, type=click.IntRange(1, 8), help="Elements a clock cycle.")
@click.option("--mhz", type=float, help="Clock.  [default: 100 from 25 MHz, 96 from 48 MHz]")
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1, 100), help="Placements to check.")
@click.option("--jobs", type=click.IntRange(1), help="Placements at the same time.  [default: one a processor]")
@click.option("--simulate-only", is_flag=True, help="Stop after the simulation.")
@click.option("--fresh", is_flag=True, help="Do everything again, also what an earlier run finished.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=BUILD / "bitstream", show_default=True, help="Folder."
)
def bitstream_command(
    board_name: str,
    program_path: Path | None,
    more_programs: tuple[Path, ...],
    layer: str,
    units: tuple[str, ...],
    image: int,
    data: Path | None,
    vector_files: tuple[Path, ...],
    beats: int,
    lanes: int,
    mhz: float | None,
    seeds: int,
    jobs: int | None,
    simulate_only: bool,
    fresh: bool,
    output: Path,
) -> None:
    """Make a bitstream in which the units test themselves on a board.

    The design holds the units, activations of a layer and the expected codes in block RAM, and tells on
    lamps and on a serial line how many elements differ and how many clock cycles each unit took. The
    same Verilog is simulated first; only when it passes is it placed, with several seeds, and packed.
    """
    from golden.files import write_atomically
    from rtl.boards import selftest
    from rtl.boards.bitstream import Flow, forget, make_bitstream
    from rtl.boards.board import board as find_board
    from rtl.boards.report import report
    from sim_tests.selftest import run_selftest, stimulus_of

    board = find_board(board_name)
    clock = selftest.clock_of(board, None if mhz is None else Fraction(str(mhz)))
    folder = output / board.name
    if fresh:
        forget(folder / "work")
    for name in _RESULTS:
        (folder / name).unlink(missing_ok=True)
    if vector_files:
        from golden.vectors import read_vectors

        vectors = [read_vectors(path) for path in vector_files]
    else:
        programs = [open_program(program_path), *map(open_program, more_programs)]
        vectors = _unit_vectors(programs, layer, units, image, data)
    stimuli = [stimulus_of(item, lanes=lanes, most_beats=beats) for item in vectors]
    verilog = selftest.build_verilog(board, clock, stimuli)
    write_atomically(folder / "selftest.v", verilog)
    write_atomically(folder / "selftest.lpf", board.constraints)
    workers = jobs or os.cpu_count() or 1
    result = run_selftest(
        verilog, bit_cycles=selftest.bit_cycles(clock), build_dir=folder / "work" / "simulation", jobs=workers
    )
    write_atomically(folder / "simulation.log", f"{result.text}({result.cycles} clock cycles)\n")
    click.echo(result.text, nl=False)
    _check_result(result, folder)
    write_atomically(folder / "uart.txt", result.text)
    if simulate_only:
        return
    flow = Flow(board, clock, verilog, folder / "work")
    with progress("synthesis, placements, bitstream", seeds + 2) as done:
        placements, files = make_bitstream(flow, seeds=range(1, seeds + 1), jobs=workers, progress=done)
    pages = report(flow, stimuli, result.text, placements, files)
    for name, content in {**files, **{name: page.encode() for name, page in pages.items()}}.items():
        write_atomically(folder / name, content)
    clocks = [(placed.seed, round(placed.mhz, 1), placed.path) for placed in placements]
    table(("seed", "MHz", "slowest path"), clocks, title=f"{board.name}, needed: {placements[0].needed_mhz:g} MHz")
    cells = [(kind, used, available) for kind, (used, available) in placements[0].utilisation.items()]
    table(("cells", "used", "available"), cells, title="utilisation")
    for name in (*files, *pages):
        click.echo(f"wrote {folder / name}")
    click.echo(f"load it: {board.load}")


def _unit_vectors(
    programs: Sequence[Program], layer: str, units: Sequence[str], image: int, data: Path | None
) -> list[UnitVectors]:
    """One layer of each kind, from the first program that has it; requantizers are those of products.

    Raises
    ------
    HwsimError
        A kind that is not there.
    """
    from hwsim.cli.hardware import hardware_nodes
    from hwsim.dump import dump_vectors
    from hwsim.unit_vectors import unit_vectors
    from rtl import catalog
    from sim_tests.selftest import requantizer_of

    for unit in units:
        catalog.entry(unit)
    found: dict[str, UnitVectors] = {}
    for program in programs:
        images = evaluation_images(program, data, image + 1 if data is None else None).images
        for vectors in unit_vectors(dump_vectors(program, images, [image], hardware_nodes(program, [layer], []))):
            found.setdefault(vectors.spec.kind, vectors)
            if vectors.accumulator is not None:
                found.setdefault("requantize", requantizer_of(vectors))
    for unit in units:
        if unit not in found:
            raise HwsimError(f"{layer} has no activations of a unit {unit!r}; it has {', '.join(sorted(found))}")
    return [
        vectors for kind, vectors in sorted(found.items()) if (not units or kind in units) and kind in catalog.UNITS
    ]


def _check_result(result: Selftest, folder: Path) -> None:
    """Go on only with a self-test that passed.

    Raises
    ------
    HwsimError
        Names the units that failed.
    """
    if result.passed:
        return
    failed = [line.split()[0] for line in result.text.splitlines()[1:-1] if line.endswith(" FAIL")]
    raise HwsimError(
        f"the simulated self-test failed in {', '.join(failed)}, see {folder / 'simulation.log'}; "
        "no bitstream was made: find the first difference with `hwsim cosim`"
    )
