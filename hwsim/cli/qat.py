"""``hwsim train`` and ``hwsim qat-ablation``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from golden.errors import HwsimError
from hwsim.cli.display import table
from hwsim.cli.source import (
    BUILD,
    EMBEDDED,
    calibration_source,
    evaluation_images,
    make_recipe,
    with_options,
)

if TYPE_CHECKING:
    import torch

    from hwsim.qat.settings import TrainingSettings
    from hwsim.qat.trainer import Event, Progress

settings_options = with_options(
    click.option("--epochs", type=int, default=300, show_default=True),
    click.option("--batch", type=int, default=512, show_default=True, help="Images a step, of all processes."),
    click.option("--lr", type=float, default=2e-4, show_default=True, help="Peak of the cosine schedule."),
    click.option("--warmup", type=float, default=0.0, show_default=True, help="Epochs of a linear warm-up."),
    click.option("--weight-decay", type=float, default=0.0, show_default=True, help="Of the weights of linear layers."),
    click.option(
        "--clip", type=float, default=1.0, show_default=True, help="Largest norm of all gradients; 0 does not clip."
    ),
    click.option(
        "--start",
        type=click.Choice(["lsq", "omse"]),
        default="lsq",
        show_default=True,
        help="First steps of the activations: LSQ's formula, or least squared error.",
    ),
    click.option(
        "--augment",
        metavar="CHANGES",
        help="shift=PIXELS, flip, erase=PROBABILITY, crop=AREA, with commas between, or none.  "
        "[default: shift=2,erase=0.25; crop=0.08,flip for a folder of images]",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16"]),
        help="Of products in training.  [default: bf16 on a GPU, fp32 on a CPU]",
    ),
    click.option(
        "--compile",
        "speed",
        type=click.Choice(["full", "graph", "none"]),
        help="full: torch.compile and a CUDA graph; graph: the latter alone.  [default: full on a GPU, none on a CPU]",
    ),
    click.option("--data", type=click.Path(path_type=Path), help="Training images, see `hwsim calibrate`."),
    click.option("--images", type=click.IntRange(1), help="At most this many training images.  [default: all]"),
    click.option(
        "--calibration-images",
        type=click.IntRange(1),
        default=256,
        show_default=True,
        help="For the first steps, and the ranges of what stays in float.",
    ),
)


def _settings(
    batches_are_arrays: bool,
    device: torch.device,
    *,
    lr: float,
    augment: str | None,
    precision: str | None,
    **values: Any,
) -> TrainingSettings:
    """Settings of the options; those that are None depend on data and device."""
    from hwsim.qat.settings import ARRAY_AUGMENTATION, FOLDER_AUGMENTATION, Augmentation, TrainingSettings

    usual = ARRAY_AUGMENTATION if batches_are_arrays else FOLDER_AUGMENTATION
    return TrainingSettings(
        learning_rate=lr,
        augmentation=usual if augment is None else Augmentation.parse(augment),
        precision=precision or ("bf16" if device.type == "cuda" else "fp32"),
        **values,
    )


@click.command("train")
@click.argument("network", default=EMBEDDED, metavar="[NETWORK|CHECKPOINT]")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Local weights of NETWORK (safetensors or torch).")
@click.option("--architecture", help="timm model of a CHECKPOINT whose file name does not tell.")
@click.option("--random-weights", type=int, metavar="SEED", help="timm's random initialisation, to check a structure.")
@click.option(
    "--recipe",
    default="q-vit",
    show_default=True,
    help="Where codes stand: q-vit, or fq-vit with --point residual=uniform:8 --point attention=uniform:8.",
)
@click.option("--bits", default="4", show_default=True, help="One width, or weights/activations/attention.")
@click.option("--irm/--no-irm", default=None, help="q-vit: rectify queries and keys.  [default: irm]")
@click.option("--dgd/--no-dgd", default=True, show_default=True, help="Distribution guided distillation.")
@click.option("--dgd-weight", type=float, default=1.0, show_default=True, help="Of its loss.")
@click.option(
    "--distillation/--no-distillation", default=True, show_default=True, help="Learn from the float network's class."
)
@settings_options
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of images and their augmentation.")
@click.option("--point", "points_at", multiple=True, metavar="PLACE=QUANTIZER", help="See `hwsim calibrate`.")
@click.option("--weights-at", multiple=True, metavar="PLACE=BITS", help="See `hwsim calibrate`.")
@click.option("--set", "lowering", multiple=True, metavar="FIELD=VALUE", help="A width of the integer program.")
@click.option("--device", help="cpu, cuda or cuda:1 (the second GPU).  [default: the first GPU, else the CPU]")
@click.option("--workers", type=click.IntRange(0), default=4, show_default=True, help="Processes that read a folder.")
@click.option(
    "--checkpoint-every", type=click.IntRange(0), default=0, help="Steps between checkpoints.  [default: an epoch]"
)
@click.option(
    "--resume/--fresh",
    default=None,
    help="Need a checkpoint in the folder, or start over.  [default: go on where there is one]",
)
@click.option(
    "--on", "on_data", type=click.Path(path_type=Path), help="Images to measure on.  [default: the embedded test set]"
)
@click.option("--on-images", type=click.IntRange(1), help="At most this many images to measure on.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder.  [default: build/training/NETWORK-RECIPE-seedSEED]",
)
def train_quantized_command(
    network: str,
    checkpoint: Path | None,
    architecture: str | None,
    random_weights: int | None,
    recipe: str,
    bits: str,
    irm: bool | None,
    points_at: tuple[str, ...],
    weights_at: tuple[str, ...],
    lowering: tuple[str, ...],
    dgd: bool,
    dgd_weight: float,
    speed: str | None,
    data: Path | None,
    images: int | None,
    calibration_images: int,
    device: str | None,
    workers: int,
    checkpoint_every: int,
    resume: bool | None,
    on_data: Path | None,
    on_images: int | None,
    output: Path | None,
    **values: Any,
) -> None:
    """Train a network under fake quantization, and write its integer program.

    NETWORK is as in `hwsim calibrate`. The defaults are those of Q-ViT: LAMB, distillation from the float network,
    rectified queries and keys. The folder gets checkpoint.safetensors, log.csv, trained.safetensors,
    program.safetensors and result.json. A run that was stopped goes on when the same command is given again.

    On several GPUs: torchrun --nproc-per-node 4 -m -- hwsim train NETWORK ...
    """
    from hwsim.networks import embedded
    from hwsim.program import save_program
    from hwsim.qat.data import training_data
    from hwsim.qat.distributed import processes
    from hwsim.qat.files import PROGRAM, TRAINED
    from hwsim.qat.measure import Accuracy, fake_quant_top1, float_top1, integer_top1
    from hwsim.qat.trainer import Plan, train
    from hwsim.quantize.lowering import lower

    chosen = make_recipe(recipe, lowering, points_at, weights_at, bits=bits, irm=irm)
    with processes(device) as group:
        graph, shown = calibration_source(
            network, checkpoint, architecture, data, calibration_images, values["seed"], random_weights
        )
        found = training_data(graph, data, images)
        settings = _settings(found.arrays is not None, group.device, dgd=dgd_weight if dgd else 0.0, **values)
        label = f"{graph.name}-{chosen.file_name}" + ("" if dgd else "-no-dgd") + f"-seed{settings.seed}"
        folder = output or BUILD / "training" / label
        plan = Plan(
            folder, speed or ("full" if group.device.type == "cuda" else "none"), checkpoint_every, resume, workers
        )
        with _training_bar(graph.name, group.first) as progress:
            calibration = train(graph, chosen, found, shown.images, settings, plan, group, progress=progress)
        place = str(group.device)
    if calibration is None:
        return
    program = lower(calibration)
    save_program(program, folder / PROGRAM)
    click.echo(f"trained: {folder / TRAINED}")
    click.echo(f"program: {folder / PROGRAM}")
    if on_data is None and graph.name not in embedded.NETWORKS:
        click.echo("accuracy: not measured, give images with --on FOLDER")
        return
    test = evaluation_images(graph, on_data, on_images)
    accuracy = Accuracy(
        images=len(test.images),
        float_top1=float_top1(graph, test, device=place),
        fake_quant_top1=fake_quant_top1(calibration, test, device=place),
        integer_top1=integer_top1(program, test),
    )
    accuracy.save(folder)
    click.echo(
        f"top-1 on {accuracy.images} images: float {accuracy.float_top1:.2f} %, "
        f"fake-quantized {accuracy.fake_quant_top1:.2f} %, integer {accuracy.integer_top1:.2f} %"
    )


@contextmanager
def _training_bar(name: str, shown: bool) -> Iterator[Progress | None]:
    """A bar over all steps, with epoch, step and loss; off a terminal, as in a log file, a line an epoch instead."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not shown:
        yield None
        return
    if not console.is_terminal:
        yield _print_epoch
        return
    columns = (
        TextColumn("training {task.fields[name]}"),
        BarColumn(),
        TextColumn("{task.fields[place]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, name=name, place="")
        loss = ""

        def tell(event: Event) -> None:
            nonlocal loss
            if event.loss is not None:
                loss = f", loss {event.loss:.4f}"
            place = f"epoch {event.epoch + 1}/{event.epochs}, step {event.step}/{event.steps}{loss}"
            done = event.epoch * event.steps + event.step
            bar.update(task, total=event.epochs * event.steps, completed=done, place=place)

        yield tell


def _print_epoch(event: Event) -> None:
    if event.step == event.steps and event.loss is not None:
        click.echo(f"epoch {event.epoch + 1}/{event.epochs}: loss {event.loss:.4f}", err=True)


@click.command("qat-ablation")
@settings_options
@click.option(
    "--networks", default=EMBEDDED, show_default=True, help="embedded, embedded-swin, or both with a comma between."
)
@click.option("--widths", default="4,3,2", show_default=True, help="Of weights, activations and attention.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option(
    "--parts",
    default="baseline,irm,dgd,irm+dgd",
    show_default=True,
    help="What is trained with, beside the distillation from the float network's class.",
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs side by side.")
@click.option("--device", help="cpu, cuda or cuda:1 (the second GPU).  [default: the first GPU, else the CPU]")
@click.option("--on-images", type=click.IntRange(1), help="At most this many test images.")
@click.option(
    "--integer/--no-integer", default=True, show_default=True, help="Make the integer programs, and measure them."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=BUILD / "qat-ablation", show_default=True, help="Folder."
)
def qat_ablation_command(
    networks: str,
    widths: str,
    seeds: str,
    parts: str,
    jobs: int,
    device: str | None,
    on_images: int | None,
    integer: bool,
    output: Path,
    speed: str | None,
    data: Path | None,
    images: int | None,
    calibration_images: int,
    **values: Any,
) -> None:
    """Train the embedded networks with and without IRM and DGD, as in Table 1 of the Q-ViT paper.

    Every run has a folder of its own below the output, with its trained network and program; runs that are done
    are not repeated, and stopped ones go on. The table of means and spreads over the seeds is written as CSV and
    Markdown.
    """
    from golden.files import write_atomically
    from hwsim.qat.ablation import Ablation, Run, frame, markdown, runs
    from hwsim.qat.distributed import processes

    chosen = runs(networks, widths, parts, seeds)
    with processes(device) as group:
        place = group.device
    settings = _settings(True, place, **values)
    ablation = Ablation(
        folder=output,
        settings=settings,
        device=str(place),
        speed=speed or ("full" if place.type == "cuda" else "none"),
        data=data,
        images=images,
        calibration_images=calibration_images,
        on_images=on_images,
    )
    faults: list[str] = []

    def tell(run: Run, fault: str | None) -> None:
        if fault is not None:
            faults.append(f"{run.label}: {fault}")
        click.echo(f"{run.label}: {fault or 'done'}", err=True)

    ablation.train(chosen, jobs, tell)
    if integer:
        ablation.measure_integers(chosen, tell)
    results = frame(ablation, chosen)
    write_atomically(output / "runs.csv", results.runs.to_csv(index=False))
    write_atomically(output / "table.csv", results.table.to_csv(index=False))
    write_atomically(output / "table.md", markdown(results.table))
    table(list(results.table.columns), results.table.itertuples(index=False), title="Ablation of Q-ViT")
    click.echo(f"wrote {output / 'table.csv'}, {output / 'table.md'} and {output / 'runs.csv'}")
    if faults:
        raise HwsimError(f"{len(faults)} of {len(chosen)} runs failed, {faults[0]}; the same command goes on")
