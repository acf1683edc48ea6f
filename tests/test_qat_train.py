"""Training runs: what they write, how they resume, what they refuse, and the table of many."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from golden.errors import HwsimError
from hwsim.data import ImageSet
from hwsim.execute import Executor
from hwsim.networks.graph import FloatGraph
from hwsim.qat import step as training_step
from hwsim.qat import trainer as trainer_module
from hwsim.qat.data import Batches, TrainingData
from hwsim.qat.distributed import Processes, processes
from hwsim.qat.export import load_trained
from hwsim.qat.settings import Augmentation, TrainingSettings
from hwsim.qat.start import first_grids
from hwsim.qat.trainer import Event, Plan, train
from hwsim.quantize.calibrate import Calibration
from hwsim.quantize.fake_quant import FakeQuantNetwork
from hwsim.quantize.lowering import lower
from hwsim.quantize.q_vit import fit_irm, irm_nodes, q_vit
from hwsim.quantize.recipe import Recipe

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)
SETTINGS = TrainingSettings(epochs=2, batch=8, learning_rate=2e-3, augmentation=Augmentation(shift=1, erase=0.5))


def labelled(images: np.ndarray) -> TrainingData:
    return TrainingData(ImageSet(images, np.arange(len(images)) % 7), None)


@dataclass
class Trainer:
    """A run on the small network, three steps an epoch."""

    graph: FloatGraph
    images: np.ndarray

    def __call__(
        self,
        folder: Path,
        settings: TrainingSettings = SETTINGS,
        recipe: Recipe | None = None,
        data: Any = None,
        progress: Any = None,
        **plan: Any,
    ) -> Calibration:
        found = train(
            self.graph,
            recipe or q_vit("3/3/3"),
            data or labelled(self.images),
            self.images[:12],
            settings,
            Plan(folder, **plan),
            ALONE,
            progress=progress,
        )
        assert found is not None
        return found


@pytest.fixture(scope="module")
def trainer(small_graph: FloatGraph, small_images: np.ndarray) -> Trainer:
    return Trainer(small_graph, small_images)


@pytest.fixture(scope="module")
def trained(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Calibration, list[Event]]:
    """Folder, calibration and events of a whole run."""
    folder = tmp_path_factory.mktemp("whole")
    events: list[Event] = []
    return folder, trainer(folder, progress=events.append), events


def test_run_trains_and_writes(
    trained: tuple[Path, Calibration, list[Event]], trainer: Trainer, small_images: np.ndarray
) -> None:
    folder, calibration, events = trained
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.safetensors",
        "log.csv",
        "trained.safetensors",
    ]
    lines = (folder / "log.csv").read_text().splitlines()
    assert lines[0] == "epoch,loss,label loss,teacher loss,dgd loss,learning rate,seconds"
    rows = [dict(zip(lines[0].split(","), map(float, line.split(",")), strict=True)) for line in lines[1:]]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["loss"] < rows[0]["loss"]
    for row in rows:
        assert row["loss"] == pytest.approx((row["label loss"] + row["teacher loss"]) / 2 + row["dgd loss"], rel=1e-4)
    assert [(event.epoch, event.step) for event in events] == [(e, s) for e in (0, 1) for s in (1, 2, 3)]
    assert events[-1].loss == pytest.approx(rows[1]["loss"], rel=1e-5)
    # Every kind of parameter has moved, and the calibration is a program.
    student = fit_irm(trainer.graph, trainer.images[:12])
    before = {node.name: node.parameters for node in student.nodes}
    for node in calibration.graph.nodes:
        assert node.parameters.keys() == before[node.name].keys()
        for name, array in node.parameters.items():
            assert not np.array_equal(array, before[node.name][name]), (node.name, name)
    assert len(irm_nodes(calibration.graph)) == 4
    start = first_grids(student, q_vit("3/3/3"), trainer.images[:12], SETTINGS.start)
    for name, steps in start.weights.items():
        assert not np.array_equal(calibration.weights[name].scale.ravel(), steps.ravel()), name
    for name, point in start.points.items():
        assert calibration.uniform_grid(name).scale != point.step, name
    program = lower(calibration)
    assert np.isfinite(Executor(program).predict(small_images)).all()
    again, header = load_trained(folder / "trained.safetensors")
    assert (header["network"], header["epochs"], header["recipe"]) == ("small", 2, "q-vit 3/3/3")
    pair = [FakeQuantNetwork(found).run(small_images) for found in (calibration, again)]
    np.testing.assert_array_equal(*pair)


class Killed(Exception):
    """Ends a run as a kill does: nothing is written behind it."""


@pytest.mark.parametrize("last", [(0, 2), (1, 1)])
def test_interrupted_run_ends_with_the_same_bits(
    last: tuple[int, int], trained: tuple[Path, Calibration, list[Event]], trainer: Trainer, tmp_path: Path
) -> None:
    def stop(event: Event) -> None:
        if (event.epoch, event.step) == last:
            raise Killed

    with pytest.raises(Killed):
        trainer(tmp_path, progress=stop, checkpoint_every=1)
    assert not (tmp_path / "trained.safetensors").exists()
    seen: list[Event] = []
    trainer(tmp_path, progress=seen.append, resume=True)
    assert (seen[0].epoch, seen[0].step) == (last[0], last[1] + 1)
    for name in ("trained.safetensors", "checkpoint.safetensors"):
        assert (tmp_path / name).read_bytes() == (trained[0] / name).read_bytes()
    logs = [
        [line.rpartition(",")[0] for line in (f / "log.csv").read_text().splitlines()] for f in (tmp_path, trained[0])
    ]
    assert logs[0] == logs[1]
    # A run that is complete only exports again.
    seen.clear()
    trainer(tmp_path, progress=seen.append)
    assert (
        not seen
        and (tmp_path / "trained.safetensors").read_bytes() == (trained[0] / "trained.safetensors").read_bytes()
    )
    trainer(tmp_path, progress=seen.append, resume=False)
    assert len(seen) == 6


def test_checkpoint_of_another_run_is_refused(
    trained: tuple[Path, Calibration, list[Event]], trainer: Trainer, small_images: np.ndarray, tmp_path: Path
) -> None:
    folder = trained[0]
    content = (folder / "checkpoint.safetensors").read_bytes()
    other = replace(trainer.graph, nodes=tuple(_louder(node) for node in trainer.graph.nodes))
    data, turned = labelled(small_images), small_images[::-1].copy()
    for run, message in (
        (lambda: trainer(folder, replace(SETTINGS, epochs=3)), "this run has epochs 3, the checkpoint 2"),
        (lambda: trainer(folder, replace(SETTINGS, seed=1)), "has seed 1, the checkpoint 0"),
        (
            lambda: trainer(folder, replace(SETTINGS, augmentation=Augmentation())),
            "augmentation none, .* shift=1,erase=0.5",
        ),
        (
            lambda: trainer(folder, recipe=q_vit("3/3/3", irm=False)),
            "recipe q-vit 3/3/3 no irm, the checkpoint q-vit 3/3/3",
        ),
        (lambda: trainer(folder, data=labelled(small_images[::-1])), "this run has data"),
        (lambda: trainer(folder, data=Elsewhere(labelled(small_images))), "augmentation device cuda, .* cpu"),
        (lambda: Trainer(other, small_images)(folder), "this run has weights"),
        (lambda: Trainer(trainer.graph, turned)(folder, data=data), "this run has calibration images"),
        (lambda: Trainer(replace(other, name="large"), small_images)(folder), "network large, the checkpoint small"),
        (lambda: trainer(tmp_path / "new", resume=True), "there is no checkpoint to resume"),
    ):
        with pytest.raises(HwsimError, match=message):
            run()  # type: ignore[no-untyped-call]
    assert (folder / "checkpoint.safetensors").read_bytes() == content
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 4
    (tmp_path / "checkpoint.safetensors").write_bytes(damaged)
    with pytest.raises(HwsimError, match="does not match, the file was altered or damaged; start over with --fresh"):
        trainer(tmp_path)


def _louder(node: Any) -> Any:
    if node.name != "blocks.0.mlp.fc1":
        return node
    return replace(node, parameters={**node.parameters, "bias": node.parameters["bias"] + 1})


@dataclass
class Elsewhere:
    """Data as it is augmented on a GPU."""

    data: TrainingData

    def batches(self, *arguments: Any) -> Batches:
        batches = self.data.batches(*arguments)
        batches.augmentation_device = "cuda"
        return batches


@dataclass
class Poisoned:
    """Data whose images are NaN in one step of an epoch, the second one."""

    data: TrainingData
    step: int
    epoch: int = 1

    def batches(self, *arguments: Any) -> Batches:
        batches = self.data.batches(*arguments)
        plain, bad, poisoned = batches.epoch, self.step, self.epoch

        def epoch(number: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
            for index, (x, labels) in enumerate(plain(number, start), start + 1):
                yield (x * float("nan") if (number, index) == (poisoned, bad) else x), labels

        batches.epoch = epoch  # type: ignore[method-assign]
        return batches


def test_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    trained: tuple[Path, Calibration, list[Event]], trainer: Trainer, small_images: np.ndarray, tmp_path: Path
) -> None:
    message = (
        r"not finite in epoch 2, step 2 of 3 at a learning rate of 0\.002; .*holds the state before\. .*lower --lr"
    )
    with pytest.raises(HwsimError, match=message):
        trainer(tmp_path, data=Poisoned(labelled(small_images), 2), checkpoint_every=1)
    assert not (tmp_path / "trained.safetensors").exists()
    seen: list[Event] = []
    trainer(tmp_path, progress=seen.append)  # what was good is not lost
    assert (seen[0].epoch, seen[0].step) == (1, 2)
    assert (tmp_path / "trained.safetensors").read_bytes() == (trained[0] / "trained.safetensors").read_bytes()


def test_bad_loss_ends_a_long_epoch_early(
    trainer: Trainer, small_images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 steps an epoch, and no checkpoint in between."""
    assert trainer_module.LOOK_EVERY == 100
    monkeypatch.setattr(trainer_module, "LOOK_EVERY", 10)
    data = labelled(np.tile(small_images, (25, 1, 1, 1)))
    seen: list[int] = []
    settings = replace(SETTINGS, batch=2, distillation=False, dgd=0.0, augmentation=Augmentation())
    message = r"in epoch 1, step 5 of 300 at a learning rate of 0\.002; nothing was written"
    with pytest.raises(HwsimError, match=message):
        trainer(
            tmp_path,
            settings,
            q_vit("3/3/3", irm=False),
            Poisoned(data, 5, epoch=0),
            progress=lambda event: seen.append(event.step),
        )
    assert seen == list(range(1, 10))


def test_starting_over_removes_what_an_earlier_run_left(trainer: Trainer, tmp_path: Path) -> None:
    outputs = ("checkpoint.safetensors", "trained.safetensors", "program.safetensors", "result.json", "log.csv")
    for name in (*outputs, "notes.txt"):
        (tmp_path / name).write_text("old")

    def stop(event: Event) -> None:
        raise Killed

    with pytest.raises(HwsimError, match=r"checkpoint\.safetensors"):
        trainer(tmp_path)
    assert all((tmp_path / name).read_text() == "old" for name in outputs)
    with pytest.raises(Killed):
        trainer(tmp_path, progress=stop, resume=False, checkpoint_every=1)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.safetensors", "notes.txt"}
    assert (tmp_path / "checkpoint.safetensors").stat().st_size > 1000


def test_diverging_run_says_where(trainer: Trainer, tmp_path: Path) -> None:
    with pytest.raises(
        HwsimError, match=r"in epoch 1, step [123] of 3 at a learning rate of 1e\+30; nothing was written"
    ):
        trainer(tmp_path, replace(SETTINGS, learning_rate=1e30, clip=0.0))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_loses_no_finished_epoch(
    trained: tuple[Path, Calibration, list[Event]], trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = os.fdopen, []

    def full(descriptor: int, mode: str) -> Any:
        if len(written) == 3:  # log and checkpoint of the first epoch, log of the second
            os.close(descriptor)
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(descriptor)
        return real(descriptor, mode)

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(HwsimError, match=r"checkpoint\.safetensors: cannot be written \(No space left on device\)"):
        trainer(tmp_path)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.safetensors", "log.csv"]
    seen: list[Event] = []
    trainer(tmp_path, progress=seen.append)
    assert (seen[0].epoch, seen[0].step) == (1, 1)
    assert (tmp_path / "trained.safetensors").read_bytes() == (trained[0] / "trained.safetensors").read_bytes()


def test_what_a_gpu_does_without_when_it_fails(
    trained: tuple[Path, Calibration, list[Event]], trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trying to compile changes no parameter and no sum, whether it works or not."""
    tried = []

    def compile_nothing(run: Any, **options: Any) -> Any:
        def broken(*arguments: Any) -> Any:
            tried.append(options)
            raise RuntimeError("no compiler\nand more")

        return broken

    monkeypatch.setattr(torch, "compile", compile_nothing)
    with pytest.warns(
        UserWarning, match="training runs without torch.compile, which failed: RuntimeError: no compiler$"
    ):
        trainer(tmp_path / "broken", speed="full")
    assert len(tried) == 1
    monkeypatch.setattr(torch, "compile", lambda run, **options: run)
    trainer(tmp_path / "working", speed="full")
    for name in ("broken", "working"):
        written = (tmp_path / name / "trained.safetensors").read_bytes()
        assert written == (trained[0] / "trained.safetensors").read_bytes()
    assert training_step.SPEEDS == ("full", "graph", "none")


def test_parts_can_be_left_out(trainer: Trainer, tmp_path: Path) -> None:
    settings = replace(
        SETTINGS, epochs=1, distillation=False, dgd=0.0, precision="bf16", start="omse", weight_decay=0.1
    )
    calibration = trainer(tmp_path, settings, q_vit("2/2/2", irm=False))
    assert irm_nodes(calibration.graph) == ()
    row = (tmp_path / "log.csv").read_text().splitlines()[1].split(",")
    assert row[1] == row[2] and row[3:5] == ["0", "0"]


def test_unknown_device() -> None:
    for name, said in (
        ("cuda:77", r"--device cuda:77: torch cannot use it \(.*\); take cpu or a GPU of this machine"),
        ("gpu", "--device gpu: there is no such device here; choose cpu, cuda or cuda:N"),
    ):
        with pytest.raises(HwsimError, match=said), processes(name):
            pass
