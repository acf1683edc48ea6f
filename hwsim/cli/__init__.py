"""The command line ``hwsim``. Heavy libraries are imported inside the commands."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from golden import __version__
from golden.errors import HwsimError, HwsimWarning
from hwsim.bench import WAITING
from hwsim.cli.bench import bench_command
from hwsim.cli.bitstream import bitstream_command
from hwsim.cli.calibrate import audit_command, calibrate_command
from hwsim.cli.cost import cost_command
from hwsim.cli.demo import demo_command
from hwsim.cli.explore import explore_command, sensitivity_command
from hwsim.cli.hardware import cosim_command
from hwsim.cli.prove import prove_command
from hwsim.cli.qat import qat_ablation_command, train_quantized_command
from hwsim.cli.qat_figures import qat_figures_command
from hwsim.cli.rtl import rtl_command
from hwsim.cli.run import dump_command, evaluate_command, show_command
from hwsim.cli.synth import synth_command
from hwsim.cli.table import table_command
from hwsim.cli.train import train_command
from hwsim.cli.verify import bulk_command, coverage_command, mutate_command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="hwsim")
@click.pass_context
def cli(context: click.Context) -> None:
    """Bit-accurate simulation and RTL co-design of fully quantized Vision Transformers.

    A float network is calibrated to an integer program; the program runs bit-accurately, its
    units become Verilog, and cosimulation shows that both compute the same bits. Without a
    network or program, every command works on the embedded network (a ViT for Fashion-MNIST).
    """
    # Threads that spin at barriers cost a busy machine several times the work; torch reads this when it loads. The
    # benchmark decides itself; our kernels do not use OpenMP.
    if context.invoked_subcommand != bench_command.name:
        os.environ.setdefault(*WAITING)


for command in (
    demo_command,
    calibrate_command,
    evaluate_command,
    audit_command,
    show_command,
    dump_command,
    rtl_command,
    cosim_command,
    bulk_command,
    coverage_command,
    mutate_command,
    prove_command,
    bitstream_command,
    synth_command,
    cost_command,
    train_quantized_command,
    qat_ablation_command,
    qat_figures_command,
    train_command,
    table_command,
    bench_command,
    explore_command,
    sensitivity_command,
):
    cli.add_command(command)


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Warnings of the package as lines without their place in the code; others as ever."""
    with warnings.catch_warnings():
        as_ever = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, HwsimWarning):
                click.echo(f"hwsim: {message}", err=True)
            else:
                as_ever(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def main(arguments: list[str] | None = None) -> None:
    """Entry point: one line and status 2 for bad input, 130 for an interrupt."""
    try:
        with _warnings_as_lines():
            cli.main(args=arguments, prog_name="hwsim", standalone_mode=False)
    except HwsimError as error:
        click.echo(f"hwsim: {error}", err=True)
        sys.exit(2)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("hwsim: interrupted", err=True)
        sys.exit(130)
