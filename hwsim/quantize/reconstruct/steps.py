"""Steps of Adam over groups of variables, on an accelerator as one recorded graph."""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from golden.errors import HwsimWarning

# Steps that run before the graph is recorded: they allocate what the libraries keep.
WARM_UP = 3


@dataclass(frozen=True)
class Group:
    """Variables with one rate.

    Parameters
    ----------
    variables : sequence of Tensor
        With gradients.
    rates : sequence of float
        Of each step.
    """

    variables: Sequence[Tensor]
    rates: Sequence[float]


def falling(rate: float, count: int) -> list[float]:
    """A rate that falls to 0 as half a cosine."""
    return [rate * (1 + math.cos(math.pi * step / count)) / 2 for step in range(count)]


def take_steps(
    groups: Sequence[Group],
    loss: Callable[[Tensor], Tensor],
    device: torch.device,
    *,
    settle: Callable[[], None],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Make a loss small by Adam (Kingma and Ba, ICLR 2015), with PyTorch's other settings.

    Parameters
    ----------
    groups : sequence of Group
        All with as many rates as there are steps.
    loss : callable
        Of the number of the step, int64 [1] on the device.
    device : torch.device
        On a CUDA device a step is recorded once and then replayed: its hundreds of small kernels take less time than
        it takes to start them.
    settle : callable
        Called behind each step, to keep the variables in their range.
    progress : callable, optional
        Called with the number of steps after some of them.
    """
    groups = [group for group in groups if group.variables]
    variables = [variable for group in groups for variable in group.variables]
    recorded = device.type == "cuda"
    count = len(groups[0].rates)
    place = torch.zeros(1, dtype=torch.int64, device=device)
    tables = [torch.tensor(group.rates, device=device) for group in groups]
    first = [torch.tensor(group.rates[0], device=device) if recorded else group.rates[0] for group in groups]
    optimizer = torch.optim.Adam(
        [{"params": list(group.variables), "lr": rate} for group, rate in zip(groups, first, strict=True)],
        fused=recorded or None,
        capturable=recorded,
    )

    def step() -> None:
        gradients = torch.autograd.grad(loss(place), variables)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.grad = gradient
        for options, rates in zip(optimizer.param_groups, tables, strict=True):
            if recorded:
                options["lr"].copy_(rates.index_select(0, place)[0])
        optimizer.step()
        with torch.no_grad():
            settle()
            place.add_(1)

    if not recorded:
        for number in range(count):
            for options, group in zip(optimizer.param_groups, groups, strict=True):
                options["lr"] = group.rates[number]
            step()
            if progress is not None:
                progress(1)
        return
    warm_up = min(WARM_UP, count)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(warm_up):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    repeat = _record(step, stream) if count > warm_up else step
    for _ in range(count - warm_up):
        repeat()
    torch.cuda.synchronize(device)
    if progress is not None:
        progress(count)


def _record(step: Callable[[], None], stream: torch.cuda.Stream) -> Callable[[], None]:
    """What does a step of a CUDA device again; itself where it cannot be recorded, such as one that copies.

    On the stream of the steps before: nodes of the backward pass that are still alive belong to it.
    """
    gc.collect()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            step()
    except RuntimeError as error:
        torch.cuda.synchronize()
        reason = str(error).splitlines()[0]
        warnings.warn(
            f"a step of the reconstruction cannot be recorded ({reason}); it is slower", HwsimWarning, stacklevel=2
        )
        return step
    return graph.replay
