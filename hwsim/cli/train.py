"""``hwsim train-embedded``."""

from __future__ import annotations

from pathlib import Path

import click

from hwsim.cli.display import progress
from hwsim.cli.source import BUILD, EMBEDDED, check_device


@click.command("train-embedded")
@click.argument("network", default=EMBEDDED, metavar="[embedded|embedded-swin]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Checkpoint to write.  [default: the shipped file's name, under build/]",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder of the four Fashion-MNIST .gz files.  [default: Debian's, else torchvision's download]",
)
@click.option("--epochs", type=click.IntRange(1), help="Epochs of the network; the teacher's scale along.")
@click.option("--batch-size", type=click.IntRange(1), help="Images a step.")
@click.option("--seed", default=0, show_default=True, type=int)
@click.option("--device", help="cpu, cuda or cuda:1 (the second GPU).  [default: the first GPU, else the CPU]")
def train_command(
    network: str,
    output: Path | None,
    data: Path | None,
    epochs: int | None,
    batch_size: int | None,
    seed: int,
    device: str | None,
) -> None:
    """Train an embedded network again, reproducibly.

    The shipped checkpoints are the results of the defaults, see hwsim/assets/README.md.
    """
    from dataclasses import replace

    from golden.errors import HwsimError
    from hwsim.networks.embedded import NETWORKS
    from hwsim.networks.train import STUDENTS, TEACHER, train

    if network not in NETWORKS:
        raise HwsimError(f"{network!r} is not an embedded network; choose one of {', '.join(NETWORKS)}")
    check_device(device)
    output = output or BUILD / NETWORKS[network].checkpoint
    student, teacher = STUDENTS[network], TEACHER
    if epochs is not None:
        teacher = replace(teacher, epochs=max(1, teacher.epochs * epochs // student.epochs))
        student = replace(student, epochs=epochs)
    if batch_size is not None:
        student, teacher = replace(student, batch_size=batch_size), replace(teacher, batch_size=batch_size)
    with progress("training", teacher.epochs + student.epochs) as done:
        report = train(
            output,
            network=network,
            data_dir=data,
            student=student,
            teacher=teacher,
            seed=seed,
            device=device,
            progress=lambda *_: done(1),
        )
    click.echo(f"checkpoint: {report.checkpoint}")
    if report.held_out_top1 is not None:
        click.echo(f"top-1 on held-out training images: {report.held_out_top1:.2f} %")
    click.echo(f"top-1 on the test images: {report.test_top1:.2f} %")
