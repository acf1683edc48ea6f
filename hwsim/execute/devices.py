"""Where programs run: from a device name to executors, and what happens where there is no GPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from golden.errors import HwsimError
from hwsim.execute import Executor
from hwsim.program import Program

DEVICES = "cpu, cuda, cuda:1 (the second GPU), cuda:all (every usable GPU) or auto (the same, else the CPU)"
_TORCH_NAMES = re.compile(r"cpu|cuda(:\d+)?")


class Predictor(Protocol):
    """What predicts the logits of many images: an `Executor`, or a `hwsim.execute.sharding.ShardedExecutor`."""

    def predict(
        self, images: np.ndarray, *, batch: int | None = None, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """See `hwsim.execute.Executor.predict`."""

    def prepare(self, images: int, batch: int | None = None) -> None:
        """See `hwsim.execute.Executor.prepare`."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True)
class Choice:
    """The executors of a device name.

    Attributes
    ----------
    backends : tuple of str
        One, or one a GPU.
    note : str or None
        A sentence for the user where this is not what was asked for.
    """

    backends: tuple[str, ...]
    note: str | None = None


def choose(device: str) -> Choice:
    """The executors of a device name; numba where a GPU was asked for that cannot run programs.

    Raises
    ------
    HwsimError
        Not a device name.
    """
    if device == "cpu":
        return Choice(("numba",))
    name, colon, place = device.partition(":")
    if device != "auto" and (name != "cuda" or (colon and place != "all" and not place.isdecimal())):
        raise HwsimError(f"unknown device {device!r}; choose {DEVICES}")
    if device == "auto" or place == "all":
        return _every_gpu(device)
    from hwsim.execute.cuda.availability import why_not

    index = int(place or 0)
    reason = why_not(index)
    return Choice((f"cuda:{index}",)) if reason is None else _on_the_cpu(device, reason)


def _every_gpu(device: str) -> Choice:
    from hwsim.execute.cuda.availability import survey, why_not

    found = survey()
    usable = tuple(f"cuda:{index}" for index, reason in found.items() if reason is None)
    left_out = "; ".join(reason for reason in found.values() if reason is not None)
    if usable:
        return Choice(usable, f"--device {device}: {left_out}; running on {', '.join(usable)}" if left_out else None)
    if device == "auto" and not found:
        # No GPU was asked for, and there is none.
        return Choice(("numba",))
    return _on_the_cpu(device, left_out or why_not() or "no GPU is usable")


def _on_the_cpu(device: str, reason: str) -> Choice:
    return Choice(("numba",), f"--device {device}: {reason}; running on the CPU with numba instead")


def open_predictor(program: Program, backends: tuple[str, ...]) -> Predictor:
    """One executor, or one process for each of several."""
    if len(backends) == 1:
        return Executor(program, backends[0])
    from hwsim.execute.sharding import ShardedExecutor

    return ShardedExecutor(program, backends)


def check_torch_name(name: str) -> None:
    """Refuse what is no name of a torch device that this package computes on.

    Raises
    ------
    HwsimError
        Names those that there are.
    """
    if not _TORCH_NAMES.fullmatch(name):
        raise HwsimError(f"--device {name}: there is no such device here; choose cpu, cuda or cuda:N (GPU number N)")


def check_torch_device(name: str) -> None:
    """Refuse a torch device that this machine has not; torch is only asked about GPUs.

    Raises
    ------
    HwsimError
        Says why.
    """
    check_torch_name(name)
    if name == "cpu":
        return
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        # Of torch's advice, which goes on for lines, the fault alone.
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise HwsimError(
            f"--device {name}: torch cannot use it ({reason}); take cpu or a GPU of this machine"
        ) from None


def beside_torch(device: str) -> str:
    """The executor that goes with a torch device: its GPU where that can run programs, else numba."""
    return choose(device).backends[0] if device.partition(":")[0] == "cuda" else "numba"
