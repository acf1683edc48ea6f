"""Training of the embedded networks on Fashion-MNIST, reproducible from a seed.

A convolutional teacher ensemble is trained on the labels; an embedded network then learns to match the teachers'
class probabilities on the same augmented and mixed images, which is the "consistent teaching" of [1]_. The labels
of the held-out training images and the test set play no part in it: there is no early stopping and no choice of an
epoch, the last weights are the result.

Everything random comes from generators seeded by ``seed``: the same seed, software, device and arguments give the
same weights bit for bit.

References
----------
.. [1] L. Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from golden.errors import HwsimError
from golden.files import write_atomically
from hwsim.networks.augment import erased, shift_and_flip
from hwsim.networks.embedded import CLASS_NAMES, EMBEDDED, EMBEDDED_SWIN, NETWORKS, build_model, normalize
from hwsim.networks.fashion_mnist import read_fashion_mnist
from hwsim.networks.teacher import Ensemble, build_teacher

Progress = Callable[[str, int, int, float], None]
"""Called after each epoch with the stage ("teacher 1", "student"), epochs done, epochs in all, and mean loss."""


@dataclass(frozen=True)
class Recipe:
    """Optimisation and augmentation of one network.

    Attributes
    ----------
    epochs : int
    batch_size : int
    learning_rate : float
        Peak of a cosine schedule after a linear warm-up over the first `warmup` fraction of the steps.
    warmup : float
    weight_decay : float
        AdamW; matrices and convolution kernels only.
    shift : int
        Random translation by up to so many pixels, edges filled with zeros.
    flip : bool
        Random horizontal flip.
    erase : float
        Probability of a random rectangle, 4 to 14 pixels a side, set to the mean pixel.
    mixup : float
        Probability that an image is blended with another one, with a uniform weight.
    temperature : float
        Both logits are divided by it; matters for distillation only.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    warmup: float = 0.05
    weight_decay: float = 0.05
    shift: int = 2
    flip: bool = True
    erase: float = 0.25
    mixup: float = 0.0
    temperature: float = 1.0


TEACHER = Recipe(epochs=30, batch_size=512, learning_rate=2e-3)
STUDENT = Recipe(epochs=340, batch_size=512, learning_rate=2e-3, flip=False, mixup=0.5)
STUDENTS = {EMBEDDED: STUDENT, EMBEDDED_SWIN: replace(STUDENT, epochs=350)}


@dataclass(frozen=True)
class TrainingReport:
    """What a training run reached; percentages are top-1 accuracies of the final weights.

    `held_out_top1` and `teacher_held_out_top1` are None where no image was held out or no teacher trained.
    """

    checkpoint: Path
    seed: int
    device: str
    torch_version: str
    seconds: float
    training_images: int
    teacher_held_out_top1: float | None
    held_out_top1: float | None
    test_top1: float


class _Batches:
    """Augmented batches of one epoch after another, computed on the device that holds the images."""

    def __init__(self, images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator) -> None:
        self.images, self.recipe, self.generator = images, recipe, generator
        self.device = images.device
        self.one_hot = torch.eye(len(CLASS_NAMES), device=self.device)[labels]
        self.table = _normalization_table(self.device)
        self.steps = max(1, len(images) // recipe.batch_size)

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images float32 [B, 1, 28, 28] and class probabilities float32 [B, 10]."""
        order = torch.randperm(len(self.images), generator=self.generator, device=self.device)
        for step in range(self.steps):
            chosen = order[step * self.recipe.batch_size : (step + 1) * self.recipe.batch_size]
            yield self._mix(self._augmented(self.images[chosen]), self.one_hot[chosen])

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device)

    def _augmented(self, images: Tensor) -> Tensor:
        """Shift, flip, normalise and erase uint8 images [B, 28, 28] to float32 [B, 1, 28, 28]."""
        recipe = self.recipe
        x = self.table[shift_and_flip(images, recipe.shift, recipe.flip, self.generator).long()]
        return x.masked_fill(erased(len(x), x.shape[-1], recipe.erase, self.generator), 0.0)[:, None]

    def _mix(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if not self.recipe.mixup:
            return x, targets
        weight = torch.where(self._uniform(len(x)) < self.recipe.mixup, self._uniform(len(x)), 1.0)
        # The order of a batch is random already, so the reversed batch is a random partner.
        mixed = torch.lerp(x.flip(0), x, weight[:, None, None, None])
        return mixed, torch.lerp(targets.flip(0), targets, weight[:, None])


def _normalization_table(device: torch.device) -> Tensor:
    """Normalised value of each pixel code, float32 [256]."""
    codes = np.arange(256, dtype=np.uint8).reshape(1, 256, 1, 1)
    return torch.from_numpy(normalize(codes).reshape(256)).to(device)


def _autocast(device: torch.device) -> torch.autocast | nullcontext[None]:
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def fit(
    model: nn.Module,
    batches: _Batches,
    teacher: nn.Module | None,
    stage: str,
    compiled: bool,
    progress: Progress | None,
) -> None:
    """Train `model` in place on the labels, or on the class probabilities of `teacher` where one is given.

    With `compiled`, which needs a GPU, the kernels are fused and launched as CUDA graphs.
    """
    recipe, device = batches.recipe, batches.device
    matrices = [p for name, p in model.named_parameters() if p.ndim in (2, 4)]
    others = [p for name, p in model.named_parameters() if p.ndim not in (2, 4)]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        fused=device.type == "cuda",
    )
    run = torch.compile(model, mode="reduce-overhead") if compiled else model
    total = recipe.epochs * batches.steps
    warmup = max(1, round(recipe.warmup * total))
    step = 0
    model.train()
    for epoch in range(recipe.epochs):
        loss_sum = torch.zeros((), device=device)
        for x, targets in batches.epoch():
            cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, total - warmup)))
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * min((step + 1) / warmup, cosine)
            with _autocast(device):
                if teacher is not None:
                    with torch.no_grad():
                        targets = teacher(x)
                logits = run(x).float() / recipe.temperature
            # The factor keeps gradients of the same size at every temperature (Hinton et al., 2015).
            loss = recipe.temperature**2 * F.cross_entropy(logits, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss_sum += loss.detach()
            step += 1
        mean_loss = loss_sum.item() / batches.steps
        if not math.isfinite(mean_loss):
            raise HwsimError(f"training of the {stage} diverged in epoch {epoch + 1}; choose a lower learning rate")
        if progress is not None:
            progress(stage, epoch + 1, recipe.epochs, mean_loss)
    model.eval()


def top1(model: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.uint8], device: torch.device) -> float:
    """Percentage of uint8 images [N, 28, 28] whose largest float32 logit is that of the label."""
    table = _normalization_table(device)
    right = 0
    with torch.inference_mode():
        for start in range(0, len(images), 1000):
            codes = torch.from_numpy(images[start : start + 1000].astype(np.int64)).to(device)
            guesses = model(table[codes][:, None]).argmax(1).cpu().numpy()
            right += int((guesses == labels[start : start + 1000]).sum())
    return 100 * right / len(images)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Ask PyTorch for deterministic algorithms inside the block and leave its global random state alone."""
    # cuBLAS reads its variable when it starts, so it is left in place.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # Filling fresh memory is a debugging aid of the deterministic mode; it changes no result and costs time.
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def train(
    output: Path,
    *,
    network: str = EMBEDDED,
    data_dir: Path | None = None,
    student: Recipe | None = None,
    teacher: Recipe = TEACHER,
    teachers: int = 1,
    teacher_width: int = 64,
    held_out: int = 2000,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> TrainingReport:
    """Train an embedded network and write its checkpoint.

    Parameters
    ----------
    output : Path
        Checkpoint to write: safetensors with timm's key names; the report is its metadata.
    network : str
        A key of `hwsim.networks.embedded.NETWORKS`.
    data_dir : Path, optional
        See `hwsim.networks.fashion_mnist.read_fashion_mnist`.
    student, teacher : Recipe
        By default those of `STUDENTS` and `TEACHER`; change a field with `dataclasses.replace`, for instance
        ``replace(STUDENT, epochs=100)``.
    teachers : int
        Size of the ensemble; 0 trains on the labels alone.
    teacher_width : int
        Channels of a teacher's first stage.
    held_out : int
        So many of the last training images are kept out of the training and only measured in the end.
    seed : int
    device : str, optional
        PyTorch device; the first CUDA GPU by default, else the CPU. On CUDA the networks run in bfloat16 with
        compiled graphs; weights and optimiser stay in float32.
    progress : callable, optional
        See `Progress`.

    Raises
    ------
    HwsimError
        The data cannot be read, an argument is out of range, the output cannot be written or the training
        diverges. Nothing is written then.
    """
    started = time.perf_counter()
    student = student or STUDENTS[network]
    data = read_fashion_mnist(data_dir)
    kept = len(data.train_images) - held_out
    if not 0 <= held_out < len(data.train_images):
        raise HwsimError(f"held_out is {held_out}, choose 0 to {len(data.train_images) - 1}")
    for recipe in (student, teacher) if teachers else (student,):
        if not 1 <= recipe.batch_size <= kept or recipe.epochs < 1:
            raise HwsimError(f"epochs is {recipe.epochs} and batch_size {recipe.batch_size}; choose >= 1, <= {kept}")
    if output.is_dir() or not os.access(next(p for p in output.absolute().parents if p.exists()), os.W_OK):
        raise HwsimError(f"{output}: cannot be written; choose another place")
    place = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")

    def measure(model: nn.Module) -> float | None:
        return top1(model, data.train_images[kept:], data.train_labels[kept:], place) if held_out else None

    with _deterministic():
        torch.manual_seed(seed)
        generator = torch.Generator(place).manual_seed(seed)
        images = torch.from_numpy(data.train_images[:kept].copy()).to(place)
        labels = torch.from_numpy(data.train_labels[:kept].astype(np.int64)).to(place)
        ensemble: nn.Module | None = None
        if teachers:
            members = [
                build_teacher(teacher_width).to(memory_format=torch.channels_last).to(place) for _ in range(teachers)
            ]
            for number, member in enumerate(members, 1):
                fit(member, _Batches(images, labels, teacher, generator), None, f"teacher {number}", False, progress)
            ensemble = Ensemble(members, student.temperature).eval()
        model = build_model(pretrained=False, name=network).to(place)
        # The student's kernels take less time than their launch, unlike the teacher's.
        compiled = place.type == "cuda"
        fit(model, _Batches(images, labels, student, generator), ensemble, "student", compiled, progress)
        if NETWORKS[network].half:
            model = model.half().float()  # measured is what the file holds
        report = TrainingReport(
            checkpoint=output,
            seed=seed,
            device=torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU",
            torch_version=str(torch.__version__),
            seconds=round(time.perf_counter() - started, 1),
            training_images=kept,
            teacher_held_out_top1=measure(ensemble) if ensemble is not None else None,
            held_out_top1=measure(model),
            test_top1=top1(model, data.test_images, data.test_labels, place),
        )
    arguments = {
        "network": network,
        "student": asdict(student),
        "teacher": asdict(teacher),
        "teachers": teachers,
        "teacher_width": teacher_width,
        "held_out": held_out,
    }
    _save(output, model.half() if NETWORKS[network].half else model, arguments, report)
    return report


def _save(output: Path, model: nn.Module, arguments: dict[str, object], report: TrainingReport) -> None:
    from safetensors.torch import save

    record = asdict(report) | {"arguments": arguments}
    del record["checkpoint"]  # a path of the machine that trained
    content = save(
        {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()},
        metadata={"format": "pt", "training": json.dumps(record)},
    )
    write_atomically(output, content)
