"""Executors: run integer programs; all give the same bits as the reference."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np

from golden.errors import HwsimError
from hwsim.execute.processor import Kernel, Processor, compiled_kernels, reference_kernel
from hwsim.program import Node, Program


class Machine(Protocol):
    """A program made ready to run somewhere; the arguments are checked before."""

    @property
    def kernels(self) -> Sequence[tuple[Node, Kernel]]:
        """Every node with its unit as a function of NumPy codes."""

    def run(self, images: np.ndarray, keep: Collection[str] | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See `Executor.run`."""

    def predict(self, images: np.ndarray, batch: int | None, progress: Callable[[int], None] | None) -> np.ndarray:
        """See `Executor.predict`."""

    def prepare(self, images: int, batch: int | None) -> None:
        """See `Executor.prepare`."""


class Executor:
    """A program made ready to run.

    Parameters
    ----------
    program : Program
    backend : str
        "numba" or "reference", on the processor; "cuda" or "cuda:N", on a GPU.

    Raises
    ------
    HwsimError
        Unknown backend, or no such GPU.
    """

    def __init__(self, program: Program, backend: str = "numba") -> None:
        self.program = program
        self.backend = backend
        name, colon, place = backend.partition(":")
        if name not in BACKENDS or (colon and name != "cuda"):
            raise HwsimError(f"unknown executor {backend!r}; choose one of {', '.join(BACKENDS)}")
        self._machine = BACKENDS[name](program, place if colon else "0")

    @property
    def kernels(self) -> Sequence[tuple[Node, Kernel]]:
        """Every node with its unit as a function of NumPy codes, in execution order."""
        return self._machine.kernels

    def run(self, images: np.ndarray, keep: Collection[str] | None = ()) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Run one batch of images.

        Parameters
        ----------
        images : ndarray of uint8 [N, H, W, C]
        keep : collection of str or None
            Nodes whose outputs to return; None keeps all.

        Returns
        -------
        logits : ndarray of unsigned codes [N, classes]
        kept : dict of str to ndarray
            Outputs of the kept nodes, batch axis first.
        """
        self.program.check_images(images)
        return self._machine.run(images, keep)

    def predict(
        self, images: np.ndarray, *, batch: int | None = None, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Logit codes [N, classes] of any number of images.

        The memory in use besides the result does not depend on the number of images. Batches run on all cores; on a
        GPU one after the other, the next uploaded meanwhile.

        Parameters
        ----------
        images : ndarray of uint8 [N, H, W, C]
        batch : int, optional
            Images a batch at most; by default what suits the machine. On the processor fewer where the cores then
            share the work, or the cache holds it.
        progress : callable, optional
            Called with the number of images after each batch.
        """
        if not len(images):
            raise HwsimError("there is no image to run")
        self.program.check_images(images)
        return self._machine.predict(images, batch, progress)

    def prepare(self, images: int, batch: int | None = None) -> None:
        """Compile all that `predict` of so many images takes, so that its time is that of running."""
        self._machine.prepare(images, batch)

    def close(self) -> None:
        """Give back what a machine holds; nothing has to."""


def _cuda(program: Program, place: str) -> Machine:
    from hwsim.execute.cuda.availability import why_not

    if not place.isdecimal():
        raise HwsimError(f"unknown executor 'cuda:{place}'; write cuda, or cuda:1 for the second GPU")
    reason = why_not(int(place))
    if reason is not None:
        raise HwsimError(f"the cuda executor cannot run: {reason}; take the executor numba (--device cpu)")
    import torch

    from hwsim.execute.cuda.engine import CudaMachine

    return CudaMachine(program, torch.device("cuda", int(place)))


# What makes a program ready, by executor; called when an executor is chosen, so that its libraries load then.
BACKENDS: dict[str, Callable[[Program, str], Machine]] = {
    "numba": lambda program, place: Processor(program, compiled_kernels()),
    "reference": lambda program, place: Processor(program, reference_kernel),
    "cuda": _cuda,
}


def top1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy in percent; of equal logits the lowest class counts."""
    return float((logits.argmax(axis=1) == labels).mean() * 100)
