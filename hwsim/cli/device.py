"""The option ``--device`` of commands that run integer programs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from golden.errors import HwsimError

if TYPE_CHECKING:
    from hwsim.execute.devices import Predictor
    from hwsim.program import Program

program_device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Where the integer program runs: cpu, cuda, cuda:1 (the second GPU), cuda:all (every usable GPU) or "
    "auto (the same). Without a usable GPU it runs on the CPU, and says so where one was asked for; "
    "commands that calibrate or train refuse it.",
)


def backends_on(device: str, backend: str | None = None, *, asked: bool = False) -> tuple[str, ...]:
    """Executors of a device, numba where a GPU was asked for that is not there; the user is told.

    Parameters
    ----------
    device : str
    backend : str, optional
        An executor that was asked for by name.
    asked : bool
        Whether the user named the device, also if it is the CPU.

    Raises
    ------
    HwsimError
        Not a device name, or an executor and a device that is not its own.
    """
    if backend is not None:
        if device != "cpu" or (asked and backend.partition(":")[0] == "cuda"):
            raise HwsimError(f"--backend {backend} names the executor already; leave it or --device {device} out")
        return (backend,)
    if device == "cpu":
        return ("numba",)
    from hwsim.execute.devices import choose

    choice = choose(device)
    if choice.note is not None:
        click.echo(f"hwsim: {choice.note}", err=True)
    return choice.backends


@contextmanager
def predictor(program: Program, backends: tuple[str, ...]) -> Iterator[Predictor]:
    """A program on executors, closed behind."""
    from hwsim.execute.devices import open_predictor

    opened = open_predictor(program, backends)
    try:
        yield opened
    finally:
        opened.close()
