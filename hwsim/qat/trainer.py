"""Quantization-aware training of a float graph, from its first steps to a calibration."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from golden.errors import HwsimError
from hwsim.networks.graph import FloatGraph
from hwsim.qat.checkpoint import Place, graph_digest, load_checkpoint, save_checkpoint
from hwsim.qat.data import Batches, TrainingData, fingerprint
from hwsim.qat.distillation import DistillationLoss
from hwsim.qat.distributed import Processes
from hwsim.qat.export import calibration_of, save_trained
from hwsim.qat.files import CHECKPOINT, LOG, TRAINED, remove_run
from hwsim.qat.log import TrainingLog
from hwsim.qat.network import GraphModule, QuantizedNetwork, check_trainable
from hwsim.qat.optimizer import ParameterUpdate
from hwsim.qat.settings import TrainingSettings
from hwsim.qat.start import first_grids
from hwsim.qat.step import PARTS, TrainingStep
from hwsim.quantize.calibrate import Calibration
from hwsim.quantize.q_vit import fit_irm
from hwsim.quantize.recipe import Recipe

# Steps between two looks at losses and parameters, each of which waits for the device and the other processes.
LOOK_EVERY = 100


class Event(NamedTuple):
    """What `progress` is told.

    Attributes
    ----------
    epoch, epochs : int
        Epochs that are complete, and all.
    step, steps : int
        Steps of the current epoch that are done, and all of it.
    loss : float or None
        Mean of the epoch so far, where it was looked at.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None


Progress = Callable[[Event], None]


@dataclass(frozen=True)
class Plan:
    """How a run goes on, none of which touches its result on a CPU.

    Parameters
    ----------
    folder : Path
        Output: checkpoint, log, trained network.
    speed : {"full", "graph", "none"}
        See `hwsim.qat.step.TrainingStep`.
    checkpoint_every : int
        Steps between two checkpoints; 0 is an epoch.
    resume : bool or None
        True needs a checkpoint in the folder, False removes the files of an earlier run and starts over, None goes on
        where there is one.
    workers : int
        Processes that read images of a folder.
    """

    folder: Path
    speed: str = "none"
    checkpoint_every: int = 0
    resume: bool | None = None
    workers: int = 4


def train(
    graph: FloatGraph,
    recipe: Recipe,
    data: TrainingData,
    calibration_images: np.ndarray,
    settings: TrainingSettings,
    plan: Plan,
    group: Processes,
    *,
    progress: Progress | None = None,
) -> Calibration | None:
    """Train a network under fake quantization.

    Parameters
    ----------
    graph : FloatGraph
        The float network: start of the student, and the teacher.
    recipe : Recipe
        Uniform codes of one scale a tensor and signed weights, such as `hwsim.quantize.q_vit.q_vit`.
    data : TrainingData
    calibration_images : ndarray of uint8 [N, H, W, C]
        They settle the first steps, and in the end the ranges of what stays in float.
    settings : TrainingSettings
    plan : Plan
    group : Processes
        Of `hwsim.qat.distributed.processes`.
    progress : callable, optional
        Called after every step, see `Event`.

    Returns
    -------
    Calibration or None
        Of the first process; the others get None.

    Raises
    ------
    HwsimError
        Data or recipe that do not fit, a checkpoint of another run, a loss that is not finite (the last checkpoint
        before it stays), or a file that cannot be written.
    """
    check_trainable(graph, recipe)
    device = group.device
    batches = data.batches(
        graph, settings.batch, settings.augmentation, settings.seed, device, group.part, plan.workers
    )
    identity = {
        "network": graph.name,
        "weights": graph_digest(graph),
        "recipe": recipe.name,
        "training_images": batches.images,
        "data": batches.fingerprint,
        "augmentation_device": batches.augmentation_device,
        "calibration_images": fingerprint(calibration_images),
        **settings.record(),
    }
    with _precision(device, settings.precision):
        torch.manual_seed(settings.seed)
        student = fit_irm(graph, calibration_images, device=str(device)) if recipe.irm else graph
        start = first_grids(student, recipe, calibration_images, settings.start, str(device))
        network = QuantizedNetwork(student, recipe, start, settings.batch, device)
        update = ParameterUpdate(network, settings)
        run = _Run(network, update.optimizer, batches, identity, settings, plan, group, progress)
        run.restore()
        loss = DistillationLoss(
            network,
            GraphModule(graph, device),
            distillation=settings.distillation,
            dgd=settings.dgd,
            autocast=settings.precision == "bf16",
        )
        run.train(TrainingStep(loss, network, update, group, plan.speed))
    if not group.first:
        return None
    calibration = calibration_of(network, calibration_images)
    save_trained(plan.folder / TRAINED, calibration, identity)
    return calibration


@contextmanager
def _precision(device: torch.device, precision: str) -> Iterator[None]:
    """Let float32 products on tensor cores round to TF32 where training is in bfloat16 anyway."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda" and precision == "bf16":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Run:
    """Epochs, log and checkpoints of one training."""

    def __init__(
        self,
        network: QuantizedNetwork,
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        identity: dict[str, Any],
        settings: TrainingSettings,
        plan: Plan,
        group: Processes,
        progress: Progress | None,
    ) -> None:
        self.network, self.optimizer, self.batches, self.identity = network, optimizer, batches, identity
        self.settings, self.plan, self.group, self.progress = settings, plan, group, progress
        self.place = Place()
        self.log = TrainingLog(plan.folder / LOG)

    @property
    def checkpoint(self) -> Path:
        return self.plan.folder / CHECKPOINT

    def restore(self) -> None:
        """Go on from the checkpoint of the folder, or begin."""
        exists = self.checkpoint.exists()
        if self.plan.resume and not exists:
            raise HwsimError(f"{self.checkpoint}: there is no checkpoint to resume; leave --resume out to begin")
        if exists and self.plan.resume is not False:
            self.place = load_checkpoint(self.checkpoint, self.network, self.optimizer, self.identity)
        self.group.wait()  # nobody writes before all have read
        if self.group.first:
            if self.plan.resume is False:
                remove_run(self.plan.folder)
            self.log.keep(self.place.epoch)

    def train(self, step: TrainingStep) -> None:
        """All epochs that are left."""
        steps, every = self.batches.steps, self.plan.checkpoint_every
        for epoch in range(self.place.epoch, self.settings.epochs):
            began = time.perf_counter()
            first = self.place.step
            step.reset(list(self.place.sums))
            parts: list[float] | None = None
            for number, (x, labels) in enumerate(self.batches.epoch(epoch, first), first):
                step(x, labels, self.settings.rate(epoch * steps + number, steps))
                done = number + 1
                saves = bool(every) and done % every == 0 and done < steps
                # All processes look, as each must join in the mean.
                look = saves or done % LOOK_EVERY == 0 or done == steps
                parts = self._look(step, epoch, first, done) if look else None
                if saves and parts is not None:
                    self._save(Place(epoch, done, tuple(parts)))
                if self.progress is not None:
                    loss = None if parts is None else parts[0] / done
                    self.progress(Event(epoch, self.settings.epochs, done, steps, loss))
            if self.group.first and parts is not None:
                means = {name: total / steps for name, total in zip(PARTS, parts, strict=True)}
                rate = self.settings.rate((epoch + 1) * steps - 1, steps)
                self.log.add(epoch + 1, means, rate, time.perf_counter() - began)
            self._save(Place(epoch + 1))

    def _look(self, step: TrainingStep, epoch: int, first: int, done: int) -> list[float]:
        """Sums of the losses, if every loss and parameter is finite.

        Raises
        ------
        HwsimError
            One is not; says where, and what remains.
        """
        totals = step.totals()
        norms = torch.stack(torch._foreach_norm([p.detach() for p in self.network.named_tensors().values()]))
        if first + totals.good == done and math.isfinite(totals.parts[0]) and bool(torch.isfinite(norms).all()):
            return totals.parts
        bad = min(first + totals.good + 1, done)
        kept = f"{self.checkpoint} holds the state before" if self.checkpoint.exists() else "nothing was written"
        raise HwsimError(
            f"training diverged: the loss is not finite in epoch {epoch + 1}, step {bad} of {self.batches.steps} at a "
            f"learning rate of {self.settings.learning_rate:g}; {kept}. Train with a lower --lr in another folder"
        )

    def _save(self, place: Place) -> None:
        self.place = place
        if self.group.first:
            save_checkpoint(self.checkpoint, self.network, self.optimizer, self.identity, place)
        self.group.wait()
