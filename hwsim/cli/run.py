"""``hwsim evaluate``, ``hwsim show`` and ``hwsim dump``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from hwsim.cli.device import backends_on, predictor, program_device_option
from hwsim.cli.display import progress, table, told_when_slow
from hwsim.cli.source import (
    BUILD,
    evaluation_images,
    evaluation_options,
    open_program,
    parse_images,
    program_option,
    tell_fewer,
)


@click.command("evaluate")
@program_option
@evaluation_options
@click.option("--backend", help="Executor by name: numba, reference or cuda.  [default: that of the device]")
@program_device_option
@click.option(
    "--batch", type=click.IntRange(1), help="Images a batch.  [default: 64, on a GPU as many as its kernels need]"
)
def evaluate_command(
    program_path: Path | None,
    data: Path | None,
    images: int | None,
    backend: str | None,
    device: str,
    batch: int | None,
) -> None:
    """Run a program bit-accurately and print its top-1 accuracy."""
    from hwsim.execute import top1

    program = open_program(program_path)
    chosen = evaluation_images(program, data, images)
    source = click.get_current_context().get_parameter_source("device")
    backends = backends_on(device, backend, asked=source is not ParameterSource.DEFAULT)
    tell_fewer(len(chosen.images), images, "images")
    if chosen.labels is None:
        click.echo(
            f"hwsim: {data} has no labels, so no top-1 is measured; put the images into class folders (or give an "
            "array file with labels)",
            err=True,
        )
    with predictor(program, backends) as executor:
        with told_when_slow("compiling kernels, once on this machine for each kind of unit"):
            executor.prepare(len(chosen.images), batch)
        with progress("running", len(chosen.images)) as done:
            start = time.perf_counter()
            logits = executor.predict(chosen.images, batch=batch, progress=done)
            seconds = time.perf_counter() - start
    click.echo(f"{program.network}, {program.recipe}, {' '.join(backends)}")
    if chosen.labels is not None:
        click.echo(f"top-1: {top1(logits, chosen.labels):.2f} % of {len(logits)} images")
    click.echo(f"{len(logits) / seconds:.1f} images/s ({seconds:.1f} s)")


@click.command("show")
@program_option
def show_command(program_path: Path | None) -> None:
    """List the units of a program with their widths and shapes."""
    program = open_program(program_path)
    rows = [
        (
            node.name,
            node.spec.kind,
            "x".join(map(str, program.shape(node.name))),
            node.spec.output.bits,
            _widths(node.spec),
        )
        for node in program.nodes
    ]
    table(("node", "unit", "output shape", "bits", "spec"), rows, title=f"{program.network}, {program.recipe}")


def _widths(spec: Any) -> str:
    values = spec.to_dict()
    parts = []
    for name, value in values.items():
        if name == "requantize":
            parts.append(f"accumulator={value['input']['bits']}")
        elif name not in ("kind", "overflow") and not isinstance(value, dict):
            parts.append(f"{name}={value}")
    return " ".join(parts)


@click.command("dump")
@program_option
@click.option(
    "--layer", "layers", multiple=True, help="Node, beginning of nodes (blocks.3) or pattern (blocks.*.norm1)."
)
@click.option("--unit", "units", multiple=True, help="Unit kind, such as log_softmax.")
@click.option("--images", "images_text", default="0", show_default=True, help="Image indices, such as 0,3,10-12.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of images.  [default: the embedded test set]")
@click.option("--backend", default="numba", show_default=True, help="Executor: numba, reference or cuda.")
@click.option("--hex/--no-hex", "with_hex", default=True, help="Also write .hex files for $readmemh.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=BUILD / "vectors", show_default=True, help="Folder."
)
def dump_command(
    program_path: Path | None,
    layers: tuple[str, ...],
    units: tuple[str, ...],
    images_text: str,
    data: Path | None,
    backend: str,
    with_hex: bool,
    output: Path,
) -> None:
    """Write the input and output integers of units as golden vectors.

    One safetensors file with a manifest a unit and layer, and .hex files for $readmemh.
    """
    from golden.vectors import write_hex, write_vectors
    from hwsim.dump import dump_vectors, select_nodes

    program = open_program(program_path)
    nodes = select_nodes(program, layers, units)
    indices = parse_images(images_text)
    chosen = evaluation_images(program, data, max(indices) + 1 if data is None else None)
    rows = []
    for vectors in dump_vectors(program, chosen.images, indices, nodes, backend=backend):
        path = output / f"{vectors.layer}.{vectors.spec.kind}.safetensors"
        write_vectors(path, vectors)
        if with_hex:
            write_hex(output / f"{vectors.layer}.{vectors.spec.kind}.hex", vectors)
        rows.append((vectors.layer, vectors.spec.kind, vectors.output.size, str(path)))
    table(
        ("layer", "unit", "outputs", "file"), rows, title=f"{program.network}, {program.recipe}, images {images_text}"
    )
