"""Where programs run: from a device name to executors, and what happens where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from golden.errors import HwsimError
from hwsim.execute import Executor
from hwsim.program import Program

DEVICES = "cpu, cuda, cuda:1 (the second GPU), cuda:all (every GPU) or auto (a GPU where there is one)"


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
    name, _, place = device.partition(":")
    if device != "auto" and (name != "cuda" or (place and place != "all" and not place.isdecimal())):
        raise HwsimError(f"unknown device {device!r}; choose {DEVICES}")
    from hwsim.execute.cuda.availability import gpu_count, why_not

    reason = why_not(int(place) if place.isdecimal() else 0)
    if reason is not None:
        return Choice(
            ("numba",), None if device == "auto" else f"device {device}: {reason}; running on the CPU (numba)"
        )
    if place == "all":
        return Choice(tuple(f"cuda:{index}" for index in range(gpu_count()) if why_not(index) is None))
    return Choice((f"cuda:{place or 0}",))


def open_predictor(program: Program, backends: tuple[str, ...]) -> Predictor:
    """One executor, or one process for each of several."""
    if len(backends) == 1:
        return Executor(program, backends[0])
    from hwsim.execute.sharding import ShardedExecutor

    return ShardedExecutor(program, backends)


def beside_torch(device: str) -> str:
    """The executor that goes with a torch device: its GPU where that can run programs, else numba."""
    return choose(device).backends[0] if device.partition(":")[0] == "cuda" else "numba"
