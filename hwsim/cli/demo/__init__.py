"""``hwsim demo``: the main job on the embedded network, from float accuracy to Verilog."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hwsim.cli.calibrate import calibrated
from hwsim.cli.demo import display
from hwsim.cli.device import backends_on, program_device_option
from hwsim.cli.display import progress
from hwsim.cli.source import BUILD, EMBEDDED, calibration_source, evaluation_images

if TYPE_CHECKING:
    from hwsim.program import Program
    from hwsim.quantize.calibrate import Calibration
    from hwsim.quantize.recipe import Recipe
    from hwsim.report import DemoResult

CALIBRATION_IMAGES = 1000
# The search of AdaLog bases takes long, and this program serves the hardware and the executors only.
ADALOG_CALIBRATION_IMAGES = 100
AUDIT_IMAGES = 200
EXECUTOR_IMAGES = 16
HISTOGRAM_IMAGES = 100
LAYERNORM_IMAGES = 4


@click.command("demo")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=BUILD / "demo",
    show_default=True,
    help="Folder of the report and all that it names.",
)
@click.option("--images", type=click.IntRange(1), help="Test images for the accuracy.  [default: all 10 000]")
@click.option(
    "--cosim-images",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Test images whose every activation goes through the Verilog.",
)
@click.option("--lanes", type=click.IntRange(1), default=1, show_default=True, help="Elements a beat of the units.")
@click.option("--unit", "units", multiple=True, help="Only this kind of unit in hardware; may be repeated.")
@program_device_option
def demo_command(
    output: Path, images: int | None, cosim_images: int, lanes: int, units: tuple[str, ...], device: str
) -> None:
    """Run the main job on the embedded network and report it.

    Calibrates at 8/8/4 and 8/8/8, and with AdaLog attention; measures float, fake-quantized and
    integer accuracy; compares the executors on every point of the graph; sends every activation of
    the units through their Verilog, at full rate and with random stalls; draws plots and writes a
    report of one HTML page. The exit status is 1 when any integer differs.
    """
    result = run_demo(output, images=images, cosim_images=cosim_images, lanes=lanes, units=units, device=device)
    if result.mismatches:
        click.echo(f"FAILED: {result.mismatches:,} integers differ", err=True)
        sys.exit(1)


def run_demo(
    output: Path,
    *,
    images: int | None,
    cosim_images: int,
    lanes: int,
    units: tuple[str, ...] = (),
    device: str = "cpu",
) -> DemoResult:
    """The demo: prints each part when it is there, writes all files, and gives everything as data.

    Parameters
    ----------
    output : Path
        Folder; a report of an earlier run in it is removed first.
    images : int or None
        Test images for the accuracy, None for all.
    cosim_images, lanes : int
    units : tuple of str
        Kinds of units in hardware; none takes all.
    device : str
        Where the accuracy of the programs is measured; a GPU's executor is compared with the reference too.

    Raises
    ------
    HwsimError
        A file cannot be written, a tool is missing, or there is no such unit.
    """
    from threadpoolctl import threadpool_limits

    from golden import __version__
    from golden.files import write_atomically
    from hwsim.cli.demo import hardware, software
    from hwsim.networks.interpret import Interpreter, predict
    from hwsim.page import to_html
    from hwsim.plots import demo_figures
    from hwsim.program import save_program
    from hwsim.quantize.recipe import fq_vit
    from hwsim.report import DemoResult, to_json
    from rtl import catalog

    for unit in units:
        catalog.entry(unit)
    backends = backends_on(device)
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        start = time.perf_counter()
        # Threads of the libraries wait for each other after every small operation; see hwsim.execute.parallel.
        with threadpool_limits(limits=1):
            yield
        seconds[name] = time.perf_counter() - start

    files = {
        "report": "report.html",
        "data": "demo.json",
        "plots": "plots",
        "Verilog": "rtl",
        "vectors": "vectors",
        "programs": "programs",
    }
    for name in ("report", "data"):
        # A report of an earlier run must not stand beside the files of this one.
        (output / files[name]).unlink(missing_ok=True)
    graph, calibration_images = calibration_source(EMBEDDED, None, None, None, CALIBRATION_IMAGES)
    recipes = {"8/8/4": fq_vit("8/8/4"), "8/8/8": fq_vit("8/8/8"), "adalog": fq_vit("8/8/4", attention="adalog")}
    quantized: dict[str, tuple[Calibration, Program]] = {}
    with step("calibration"):
        for name, recipe in recipes.items():
            some = calibration_images.head(ADALOG_CALIBRATION_IMAGES if name == "adalog" else None)
            quantized[name] = calibrated(graph, some, recipe)
            save_program(quantized[name][1], output / files["programs"] / f"{_file_name(recipe)}.safetensors")
    tests = evaluation_images(quantized["8/8/4"][1], None, None)
    chosen = tests.head(images)
    with step("accuracy"):
        with progress("float network", len(chosen.images)) as done:
            reference = predict(Interpreter(graph), chosen.images, progress=done)
        accuracies = []
        for bits in ("8/8/4", "8/8/8"):
            with progress(f"integer and fake-quantized {bits}", 2 * len(chosen.images)) as done:
                accuracies.append(software.measure_accuracy(bits, *quantized[bits], reference, chosen, done, backends))
    display.show_accuracy(accuracies)

    with step("executors"):
        executors = []
        compared = dict.fromkeys(("numba", *backends))
        with progress("reference against the executors", len(quantized) * len(compared)) as done:
            for _, program in quantized.values():
                for backend in compared:
                    executors.append(software.compare_executors(program, tests.images[:EXECUTOR_IMAGES], backend))
                    done(1)
    display.show_executors(executors)

    with step("audit"):
        audits = []
        for bits in ("8/8/4", "8/8/8"):
            audited = tests.images[:AUDIT_IMAGES]
            with progress(f"auditing {bits}", len(audited)) as done:
                audits.append(software.summarize_audit(*quantized[bits], audited, done))
    display.show_audits(audits)

    with step("vectors"):
        programs = [program for _, program in quantized.values()]
        vectors = hardware.hardware_vectors(programs, tests.images, cosim_images, units)
        hardware.write_samples(vectors, output / files["vectors"])
    with step("RTL"), progress("Verilog in Verilator", hardware.RUNS * len(vectors)) as done:
        rtl = hardware.cosimulate_units(vectors, lanes=lanes, output=output, progress=done)
    display.show_rtl(rtl, output)

    with step("plots"):
        with progress("histograms", HISTOGRAM_IMAGES) as done:
            scores, attention = software.count_codes(*quantized["8/8/4"], tests.images[:HISTOGRAM_IMAGES], done)
        norms = sum(node.spec.kind == "layernorm" for node in quantized["8/8/4"][1].nodes)
        with progress("LayerNorm error", norms) as done:
            layernorm = software.measure_layernorms(*quantized["8/8/4"], tests.images[:LAYERNORM_IMAGES], done)
    display.show_layernorms(layernorm)
    result = DemoResult(
        version=__version__,
        network=graph.name,
        calibration_images={program.recipe: int(program.header["calibration_images"]) for program in programs},
        accuracy=tuple(accuracies),
        executors=tuple(executors),
        audits=tuple(audits),
        rtl=rtl,
        histogram_images=HISTOGRAM_IMAGES,
        scores=scores,
        attention=attention,
        layernorm=layernorm,
        seconds=seconds,
        files=files,
    )
    figures = demo_figures(result)
    for figure in figures:
        write_atomically(output / files["plots"] / f"{figure.name}.png", figure.png)
    write_atomically(output / files["data"], to_json(result))
    write_atomically(output / files["report"], to_html(result, figures))
    display.show_files(result, output)
    return result


def _file_name(recipe: Recipe) -> str:
    return f"{EMBEDDED}-{recipe.file_name}"
