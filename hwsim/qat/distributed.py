"""Several training processes, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from hwsim.execute.devices import check_torch_device, check_torch_name
from hwsim.qat.data import Part


@dataclass(frozen=True)
class Processes:
    """One process among those of a run.

    Parameters
    ----------
    rank, count : int
    device : torch.device
        Where it computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """The one that writes files and talks."""
        return self.rank == 0

    @property
    def part(self) -> Part:
        """Its share of every batch."""
        return Part(self.rank, self.count)

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over the processes; a tensor of its own."""
        if self.count > 1:
            tensor = tensor.clone()
            distributed.all_reduce(tensor)
            tensor = tensor / self.count
        return tensor

    def least(self, tensor: Tensor) -> Tensor:
        """Minimum over the processes; a tensor of its own."""
        if self.count > 1:
            tensor = tensor.clone()
            distributed.all_reduce(tensor, distributed.ReduceOp.MIN)
        return tensor

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            distributed.barrier()


def chosen_device(name: str | None, count: int, local: int) -> torch.device:
    """The device of a process, GPUs with their number.

    Parameters
    ----------
    name : str, optional
        As of `processes`.
    count, local : int
        Processes of the run, and the number of this one on its machine.

    Raises
    ------
    HwsimError
        No name of a device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    check_torch_name(name)
    return torch.device("cuda", local if count > 1 else 0) if name == "cuda" else torch.device(name)


@contextmanager
def processes(device: str | None) -> Iterator[Processes]:
    """Join the other processes of torchrun, if there are any.

    Parameters
    ----------
    device : str, optional
        torch device; the first GPU by default, else the CPU. Under torchrun each process takes the GPU of its
        local rank, with NCCL between them; on CPUs they meet through Gloo.

    Raises
    ------
    HwsimError
        No such device.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    place = chosen_device(device, count, local)
    check_torch_device(str(place))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if count == 1:
        yield Processes(0, 1, place)
        return
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(rank, count, place)
    finally:
        distributed.destroy_process_group()
