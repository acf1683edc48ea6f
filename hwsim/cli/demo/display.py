"""The parts of a demo result as text tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwsim.cli.display import table

if TYPE_CHECKING:
    from hwsim.report import Accuracy, AuditSummary, DemoResult, ExecutorAgreement, LayerNormErrors, RtlUnit


def show_accuracy(accuracies: Sequence[Accuracy]) -> None:
    """Top-1 of each recipe."""
    columns = ("recipe", "float", "fake-quantized", "integer", "to fake-quantized", "to float", "integer images/s")
    rows = [
        (
            accuracy.recipe,
            accuracy.float_top1,
            accuracy.fake_quant_top1,
            accuracy.integer_top1,
            accuracy.integer_minus_fake_quant,
            accuracy.integer_minus_float,
            round(accuracy.images_per_second),
        )
        for accuracy in accuracies
    ]
    table(columns, rows, title=f"Top-1 accuracy on {accuracies[0].images:,} test images, in percent and points")


def show_executors(agreements: Sequence[ExecutorAgreement]) -> None:
    """Reference against the other executors."""
    columns = ("recipe", "executor", "images", "points of the graph", "integers compared", "mismatches")
    rows = [(item.recipe, item.executor, item.images, item.points, item.values, item.mismatches) for item in agreements]
    table(columns, rows, title="Executors against the reference, to the last bit")
    for item in agreements:
        if item.first_mismatch is not None:
            click.echo(f"  {item.recipe}: {item.first_mismatch}")


def show_audits(audits: Sequence[AuditSummary]) -> None:
    """The worst points of the lowering."""
    columns = ("unit", "worst point", "equal %", "mean", "largest", "end-to-end mean", "end-to-end largest")
    for audit in audits:
        rows = [
            (
                point.unit,
                point.point,
                point.local_equal,
                point.local_mean,
                point.local_largest,
                point.end_to_end_mean,
                point.end_to_end_largest,
            )
            for point in audit.worst
        ]
        title = (
            f"Lowering audit of {audit.recipe}: integer minus fake-quantized codes in LSB, "
            f"{audit.points} points, {audit.images} images"
        )
        table(columns, rows, title=title)


def show_rtl(units: Sequence[RtlUnit], output: Path) -> None:
    """Every layer of every unit, below the sum of the unit."""
    columns = (
        "unit and layer",
        "compared",
        "mismatches",
        "cycles",
        "with stalls",
        "cycles/row",
        "rows/image",
        "images/s",
    )
    rows: list[tuple[Any, ...]] = []
    for unit in units:
        rows.append(
            (
                unit.module,
                unit.compared,
                unit.mismatches,
                unit.cycles,
                unit.stalled_cycles,
                unit.cycles_per_row,
                unit.rows_per_image,
                round(unit.images_per_second),
            )
        )
        rows += [
            (
                f"  {layer.layer}",
                layer.compared,
                layer.mismatches,
                layer.full_rate.cycles,
                layer.stalled.cycles,
                layer.cycles_per_row,
                layer.rows_per_image,
                round(layer.images_per_second),
            )
            for layer in unit.layers
        ]
    lanes = ", ".join(str(lanes) for lanes in sorted({unit.lanes for unit in units}))
    images = max(unit.images for unit in units)
    title = f"Verilog in Verilator against the activations of {images} test image(s), {lanes} lane(s)"
    table(columns, rows, title=title)
    click.echo(
        "compared: activations of two runs, at full rate and with random stalls on both sides. images/s: at 100 MHz;\n"
        "of a layer, if the unit did nothing else; of a unit, if one serves all its layers of an image in turn.\n"
    )
    for unit in units:
        for layer in unit.layers:
            for run in (layer.full_rate, layer.stalled):
                if run.first_mismatch is not None:
                    waveform = "" if run.waveform is None else f"; waveform: {output / run.waveform}"
                    click.echo(f"  {run.first_mismatch}{waveform}")


def show_layernorms(errors: LayerNormErrors) -> None:
    """Size of the error over all layers."""
    from hwsim.report import ROUNDING_RMS

    click.echo(
        f"LayerNorm error against real arithmetic in output steps: RMS {errors.rms:.3f}, largest {errors.largest:.3f}\n"
        f"(FQ-ViT's released form: {errors.released_rms:.3f}, {errors.released_largest:.3f}; "
        f"rounding alone: {ROUNDING_RMS:.3f}, 0.5); {len(errors.layers)} layers, {errors.images} images\n"
    )


def show_files(result: DemoResult, output: Path) -> None:
    """The verdict, and where everything lies."""
    click.echo(
        f"{result.mismatches:,} mismatches in {sum(item.values for item in result.executors):,} integers of the "
        f"executors and {result.activations_compared:,} activations of the Verilog; "
        f"{sum(result.seconds.values()):.0f} s\n"
    )
    width = max(len(name) for name in result.files)
    for name, path in result.files.items():
        click.echo(f"{name:<{width}}  {output / path}")
