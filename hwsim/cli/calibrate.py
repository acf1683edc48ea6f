"""``hwsim calibrate`` and ``hwsim audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwsim.cli.display import progress, table
from hwsim.cli.source import (
    BUILD,
    calibration_source,
    check_device,
    check_guard_bits,
    check_output,
    device_option,
    evaluation_images,
    lowering_values,
    make_recipe,
    network_options,
    recipe_options,
    tell_fewer,
    trained_file,
)

if TYPE_CHECKING:
    from hwsim.data import ImageSet
    from hwsim.networks.graph import FloatGraph
    from hwsim.program import Program
    from hwsim.quantize.calibrate import Calibration
    from hwsim.quantize.recipe import Recipe


def calibrated(graph: FloatGraph, images: ImageSet, recipe: Recipe, device: str = "cpu") -> tuple[Calibration, Program]:
    """Calibrate and lower, with a progress bar, and another one of a reconstruction."""
    from dataclasses import replace

    from hwsim.quantize.calibrate import calibrate
    from hwsim.quantize.lowering import lower
    from hwsim.quantize.search.run import searched_nodes

    searched = replace(recipe, reconstruct=None)
    if recipe.search is None:
        with progress(f"calibrating {graph.name}", len(images.images)) as done:
            calibration = calibrate(graph, images.images, searched, progress=done, device=device)
    else:
        with progress(f"searching the scales of {graph.name}", len(searched_nodes(graph))) as done:
            calibration = calibrate(graph, images.images, searched, layers=done, device=device)
    if recipe.reconstruct is not None:
        from hwsim.quantize.reconstruct.blocks import blocks
        from hwsim.quantize.reconstruct.learn import reconstruct

        calibration = replace(calibration, recipe=recipe)
        steps = len(blocks(calibration.graph)) * recipe.reconstruct.iterations
        with progress(f"reconstructing the blocks of {graph.name}", steps) as done:
            calibration = reconstruct(calibration, images.images, recipe.reconstruct, progress=done, device=device)
    return calibration, lower(calibration)


@click.command("calibrate")
@network_options
@recipe_options
@device_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Program file.  [default: build/programs/NETWORK-RECIPE.safetensors]",
)
def calibrate_command(
    network: str,
    checkpoint: Path | None,
    architecture: str | None,
    random_weights: int | None,
    data: Path | None,
    images: int | None,
    seed: int,
    device: str,
    output: Path | None,
    **recipe_values: Any,
) -> None:
    """Turn a float network into an integer program.

    NETWORK is "embedded", "embedded-swin" or a timm model name (weights from --checkpoint, or timm's
    download);
    CHECKPOINT is a local file whose name begins with the timm model name. The worst error of the
    integer multipliers is printed for each kind of unit.
    """
    from hwsim.program import save_program

    check_device(device)
    recipe = make_recipe(**recipe_values)
    if output is not None:
        check_output(output)
    graph, image_set = calibration_source(network, checkpoint, architecture, data, images, seed, random_weights)
    path = output or BUILD / "programs" / f"{graph.name}-{recipe.file_name}.safetensors"
    check_output(path)
    tell_fewer(len(image_set.images), images, "calibration images")
    calibration, program = calibrated(graph, image_set, recipe, device)
    save_program(program, path)
    rows: dict[str, list[Any]] = {}
    for node in program.nodes:
        row = rows.setdefault(node.spec.kind, [node.spec.kind, 0, 0, 0.0, 0.0])
        row[1] += 1
        requantize = getattr(node.spec, "requantize", None)
        row[2] = max(row[2], requantize.input.bits if requantize else 0)
        errors = program.header["lowering"].get(node.name, {})
        row[3] = max(row[3], errors.get("relative_error", 0.0) * 1e6)
        row[4] = max(row[4], errors.get("steps", 0.0))
    title = f"{graph.name}, {recipe.name}, {calibration.images} calibration images"
    columns = ("unit", "nodes", "accumulator bits", "worst multiplier error (ppm)", "in output steps")
    table(columns, rows.values(), title=title)
    if calibration.reconstructed:
        table(
            ("block", "error before", "error behind"),
            [(name, before, behind) for name, (before, behind) in calibration.reconstructed.items()],
            title="reconstruction: error of each block's output on the calibration images",
        )
    click.echo(f"program: {path}")


@click.command("audit")
@network_options
@recipe_options
@device_option
@click.option(
    "--on",
    "on_data",
    type=click.Path(path_type=Path),
    help="Folder of images to compare on.  [default: the embedded test set]",
)
@click.option("--on-images", type=click.IntRange(1), default=200, show_default=True, help="Images to compare on.")
@click.option(
    "--trained",
    type=click.Path(path_type=Path),
    help="Compare a network that `hwsim train` trained: its folder, or trained.safetensors. Of the recipe's options "
    "only --set counts.",
)
@click.option("--points/--summary", default=True, help="A line for every point of the graph, or for each unit.")
def audit_command(
    network: str,
    checkpoint: Path | None,
    architecture: str | None,
    random_weights: int | None,
    data: Path | None,
    images: int | None,
    seed: int,
    device: str,
    on_data: Path | None,
    on_images: int,
    trained: Path | None,
    points: bool,
    **recipe_values: Any,
) -> None:
    """Compare the integer program with the published fake-quantized network.

    Calibrates like `hwsim calibrate`, then compares codes at every point of the graph, in output
    steps: "local" gives each integer unit the fake-quantized network's own codes, "end to end"
    runs both networks from the image. Also top-1 of both and of the float network.
    """
    from hwsim.audit import audit

    if trained is None:
        check_device(device)
        recipe = make_recipe(**recipe_values)
        graph, image_set = calibration_source(network, checkpoint, architecture, data, images, seed, random_weights)
        tell_fewer(len(image_set.images), images, "calibration images")
        calibration, program = calibrated(graph, image_set, recipe, device)
    else:
        calibration, program = _trained(trained, recipe_values["lowering"])
        graph, recipe = calibration.graph, calibration.recipe
    chosen = evaluation_images(program, on_data, on_images)
    with progress("auditing", len(chosen.images)) as done:
        result = audit(calibration, program, chosen.images, chosen.labels, progress=done, device=device)
    columns = (
        "point",
        "unit",
        "codes",
        "local equal %",
        "local mean",
        "local max",
        "end-to-end mean",
        "end-to-end max",
    )
    rows = [
        (
            point.point,
            point.unit,
            point.local.compared,
            point.local.share_equal * 100,
            point.local.mean,
            point.local.largest,
            point.end_to_end.mean,
            point.end_to_end.largest,
        )
        for point in result.points
    ]
    if not points:
        rows = _worst_of_each_unit(rows)
    table(columns, rows, title=f"{graph.name}, {recipe.name}: integer minus fake-quantized codes, in steps")
    if result.integer_top1 is not None:
        click.echo(
            f"top-1 on {result.images} images: {'float' if trained is None else 'trained weights in float'} "
            f"{result.float_top1:.2f} %, "
            f"fake-quantized {result.fake_quant_top1:.2f} %, integer {result.integer_top1:.2f} %"
        )
    click.echo(f"same prediction as the fake-quantized network: {100 * result.same_prediction:.2f} %")


def _trained(path: Path, settings: tuple[str, ...]) -> tuple[Calibration, Program]:
    """A trained network and its program, some widths of which may be others."""
    from dataclasses import replace

    from hwsim.qat.export import load_trained
    from hwsim.quantize.lowering import lower
    from hwsim.quantize.parts import with_parts

    calibration, _ = load_trained(trained_file(path))
    widths = lowering_values(settings)
    calibration = replace(calibration, recipe=with_parts(calibration.recipe, widths))
    check_guard_bits(calibration.recipe, widths)
    return calibration, lower(calibration)


def _worst_of_each_unit(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The point of each unit with the largest local mean difference."""
    worst: dict[str, tuple[Any, ...]] = {}
    for row in rows:
        if row[1] not in worst or row[4] > worst[row[1]][4]:
            worst[row[1]] = row
    return list(worst.values())
