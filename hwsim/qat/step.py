"""One training step: forward and backward of both networks, and the optimizer.

On a GPU the step does not wait for the host anywhere: losses add up on the device and are read when somebody asks.
Forward and backward are compiled by torch and then recorded as one CUDA graph, since a small network's kernels take
less time than their launch; whatever of this fails is left out, with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from golden.errors import HwsimWarning
from hwsim.qat.distillation import DistillationLoss
from hwsim.qat.distributed import Processes
from hwsim.qat.network import QuantizedNetwork
from hwsim.qat.optimizer import ParameterUpdate

SPEEDS = ("full", "graph", "none")
PARTS = ("loss", "label loss", "teacher loss", "dgd loss")
# Calls in front of the recording of a graph: the first compiles, the next ones settle the memory.
WARM_UP = 3


class Totals(NamedTuple):
    """Sums since `TrainingStep.reset`.

    Attributes
    ----------
    parts : list of float
        Of the loss and its parts, see `PARTS`.
    good : int
        Steps before the first one whose loss is not finite.
    """

    parts: list[float]
    good: int


class TrainingStep:
    """Trains a network on one batch after another.

    Parameters
    ----------
    loss : DistillationLoss
    network : QuantizedNetwork
        The student in it.
    update : ParameterUpdate
    group : Processes
        Gradients are averaged over them by DistributedDataParallel.
    speed : {"full", "graph", "none"}
        On a GPU, "graph" takes the fused kernels of `hwsim.quantize.lsq_kernels` and, of a single process, records
        forward and backward as a CUDA graph; "full" compiles them before. "none" does neither.
    """

    def __init__(
        self,
        loss: DistillationLoss,
        network: QuantizedNetwork,
        update: ParameterUpdate,
        group: Processes,
        speed: str,
    ) -> None:
        self.loss, self.network, self.update, self.group = loss, network, update, group
        self.device = group.device
        self._run: Callable[[Tensor, Tensor], Tensor] = loss
        if group.count > 1:
            places = [self.device.index] if self.device.type == "cuda" else None
            self._run = nn.parallel.DistributedDataParallel(loss, device_ids=places)
        self._plain = self._run
        if speed == "full":
            self._run = torch.compile(self._run, dynamic=False)
        self._recorded = speed != "none" and group.count == 1 and self.device.type == "cuda"
        self._untried = speed != "none"
        self._graph: Any = None
        self._batch: tuple[Tensor, Tensor] | None = None
        self._sums = torch.zeros(len(PARTS), dtype=torch.float64, device=self.device)
        self._good = torch.zeros((), dtype=torch.int64, device=self.device)
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)

    def reset(self, parts: list[float] | None = None) -> None:
        """Begin new sums, or go on with those of a checkpoint."""
        self._sums.copy_(torch.tensor(parts or [0.0] * len(PARTS), dtype=torch.float64))
        self._good.zero_()
        self._finite.fill_(True)

    def totals(self) -> Totals:
        """The sums, a mean of the processes; waits for the device."""
        sums, good = self.group.mean(self._sums), self.group.least(self._good)
        return Totals(sums.tolist(), int(good))

    def __call__(self, x: Tensor, labels: Tensor, rate: float) -> None:
        """Train on normalised images float32 [B, H, W, C] and labels int64 [B] at a learning rate."""
        if self._untried:
            self._prepare(x, labels)
        if self._graph is not None and self._batch is not None:
            for place, value in zip(self._batch, (x, labels), strict=True):
                place.copy_(value)
            self._graph.replay()
        else:
            self._forward_backward(x, labels)
        self.update.step(rate)
        self.network.keep_steps_positive()

    def _forward_backward(self, x: Tensor, labels: Tensor) -> None:
        self.update.clear()
        parts = self._run(x, labels)
        parts[0].backward()
        self.update.gather()
        found = parts.detach()
        self._sums += found
        self._finite &= torch.isfinite(found[0])
        self._good += self._finite

    def _prepare(self, x: Tensor, labels: Tensor) -> None:
        """Compile, and record a graph; without what fails."""
        self._untried = False
        before = self._sums.clone(), self._good.clone(), self._finite.clone()
        gpu = self.device.type == "cuda"
        self._fuse(gpu, gpu)
        # What is tried in turn, and what is left of the kernels when it fails.
        trials = [("torch.compile", (gpu, gpu))] * (self._run is not self._plain)
        trials += [("fused LayerNorms", (gpu, False)), ("fused quantizers", (False, False))]
        for name, kernels in trials:
            try:
                self._warm_up(x, labels)
                break
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers and their backends raise all kinds
                if not any((gpu, self._run is not self._plain)):
                    raise
                warnings.warn(f"training runs without {name}, which failed: {_line(error)}", HwsimWarning, stacklevel=2)
                self._run = self._plain
                self._fuse(*kernels)
        if self._recorded:
            try:
                self._record(x, labels)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                warnings.warn(
                    f"training runs without a CUDA graph, which failed: {_line(error)}", HwsimWarning, stacklevel=2
                )
                self._graph = None
        for place, value in zip((self._sums, self._good, self._finite), before, strict=True):
            place.copy_(value)

    def _fuse(self, quantizers: bool, norms: bool) -> None:
        for network in (self.loss.student, self.loss.teacher):
            network.fused_quantizers, network.fused_norms = quantizers, norms

    def _warm_up(self, x: Tensor, labels: Tensor) -> None:
        """Gradients only: no parameter changes."""
        for _ in range(WARM_UP):
            self._forward_backward(x, labels)

    def _record(self, x: Tensor, labels: Tensor) -> None:
        self._batch = x.clone(), labels.clone()
        # As torch's notes on CUDA graphs have it: warm up on a stream of its own, and let the recorded backward
        # make the gradients, which each replay then overwrites.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._warm_up(*self._batch)
        torch.cuda.current_stream().wait_stream(side)
        self.update.clear()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._forward_backward(*self._batch)
        self._graph = graph


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
