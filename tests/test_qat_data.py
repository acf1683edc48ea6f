"""Training batches and settings: what decides them, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from golden.errors import HwsimError
from hwsim.data import ImageSet, find_images
from hwsim.networks.graph import FloatGraph
from hwsim.networks.interpret import Interpreter
from hwsim.qat.data import WHOLE, ArrayBatches, FolderBatches, Part, training_data
from hwsim.qat.settings import Augmentation, TrainingSettings

CPU = torch.device("cpu")


def image_set(images: np.ndarray) -> ImageSet:
    return ImageSet(images, np.arange(len(images)) % 7)


def batches_of(graph: FloatGraph, images: np.ndarray, text: str = "shift=2,flip,erase=0.5", **options: Any) -> Any:
    return ArrayBatches(graph, image_set(images), 8, Augmentation.parse(text), options.pop("seed", 3), CPU, **options)


def test_batches_follow_from_seed_epoch_and_step(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    whole = list(batches_of(small_graph, small_images).epoch(4, 0))
    assert [x.shape for x, _ in whole] == [(8, 16, 16, 3)] * 3
    for start in (1, 2):
        rest = list(batches_of(small_graph, small_images).epoch(4, start))
        assert all(
            torch.equal(a, b) for pair in zip(rest, whole[start:], strict=True) for a, b in zip(*pair, strict=True)
        )
    halves = [list(batches_of(small_graph, small_images, part=Part(index, 2)).epoch(4, 0)) for index in (0, 1)]
    for (x, labels), *parts in zip(whole, *halves, strict=True):
        assert torch.equal(torch.cat([part[0] for part in parts]), x)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)
    assert sorted(int(label) for _, labels in whole for label in labels) == sorted(np.arange(24) % 7)
    for other in (
        batches_of(small_graph, small_images, seed=4).epoch(4, 0),
        batches_of(small_graph, small_images).epoch(5, 0),
    ):
        assert not torch.equal(next(other)[0], whole[0][0])


def test_without_augmentation_batches_are_the_images(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    loaded = Interpreter(small_graph).load(small_images)
    rows = {row.numpy().tobytes(): index % 7 for index, row in enumerate(loaded)}
    small_images = small_images.copy()
    small_images.flags.writeable = False  # as a file gives them
    for x, labels in batches_of(small_graph, small_images, "none").epoch(0, 0):
        assert [rows[row.numpy().tobytes()] for row in x] == labels.tolist()
    x, _ = next(batches_of(small_graph, small_images, "erase=1").epoch(0, 0))
    erased = [float((row == 0).all(dim=-1).float().mean()) for row in x]
    assert min(erased) > 0.01


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images in each of seven class folders."""
    folder = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for label in range(7):
        (folder / str(label)).mkdir()
        for number in range(2):
            pixels = rng.integers(0, 256, (5, 6, 3)).repeat(6, axis=0).repeat(6, axis=1).astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{number}.png")
    return folder


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_folder_batches(small_graph: FloatGraph, image_folder: Path) -> None:
    def batches(text: str, workers: int = 0, part: Part = WHOLE) -> FolderBatches:
        source = find_images(image_folder)
        return FolderBatches(small_graph, source, 4, Augmentation.parse(text), 0, CPU, part, workers)

    first = batches("crop=0.3,flip")
    assert (first.steps, first.images) == (3, 14)
    whole = list(first.epoch(2, 0))
    assert [(x.shape, labels.dtype) for x, labels in whole] == [((4, 16, 16, 3), torch.int64)] * 3
    # Neither the workers nor what the global generator did before matter, nor where the epoch is entered.
    torch.manual_seed(99)
    for other in (list(batches("crop=0.3,flip", workers=1).epoch(2, 1)), list(batches("crop=0.3,flip").epoch(2, 1))):
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(other, whole[1:], strict=True))
    halves = [next(batches("crop=0.3,flip", part=Part(index, 2)).epoch(2, 0))[0] for index in (0, 1)]
    assert torch.equal(torch.cat(halves), whole[0][0])
    assert not torch.equal(next(batches("crop=0.3,flip").epoch(3, 0))[0], whole[0][0])
    plain = next(batches("none").epoch(0, 0))[0]
    assert torch.equal(plain, next(batches("none").epoch(0, 0))[0])


def test_folders_of_the_same_labels_are_told_apart(small_graph: FloatGraph, image_folder: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> str:
        batches = FolderBatches(small_graph, find_images(folder), 4, Augmentation(), 0, CPU, workers=0)
        assert training_data(small_graph, folder).fingerprint(7) == batches.fingerprint
        return batches.fingerprint

    copy = tmp_path / "copy"
    shutil.copytree(image_folder, copy)
    # Where the folder lies does not matter.
    assert fingerprint(copy) == fingerprint(image_folder)
    (copy / "3" / "1.png").rename(copy / "3" / "2.png")
    assert fingerprint(copy) != fingerprint(image_folder)
    (copy / "3" / "2.png").rename(copy / "3" / "1.png")
    assert fingerprint(copy) == fingerprint(image_folder)
    Image.fromarray(np.zeros((30, 36, 3), np.uint8)).save(copy / "3" / "1.png")
    assert fingerprint(copy) != fingerprint(image_folder)


def test_order_is_the_same_on_every_device(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """Torch's device without memory draws nothing: only the augmentation may ask a device for random numbers."""
    meta = torch.device("meta")
    plain = ArrayBatches(small_graph, image_set(small_images), 8, Augmentation(), 3, meta)
    assert [x.shape for x, _ in plain.epoch(0, 0)] == [(8, 16, 16, 3)] * 3
    changed = ArrayBatches(small_graph, image_set(small_images), 8, Augmentation(shift=1), 3, meta)
    assert (plain.augmentation_device, changed.augmentation_device) == ("cpu", "meta")


def test_bad_data_is_refused(
    small_graph: FloatGraph, small_images: np.ndarray, image_folder: Path, tmp_path: Path
) -> None:
    arrays, settings = image_set(small_images), (Augmentation(), 0, CPU)
    for batch, part, message in (
        (25, Part(0, 1), "a batch of 25 is larger than the 24 training images"),
        (8, Part(0, 3), "does not give each of 3 processes the same number"),
        (2, Part(0, 2), "does not give each of 2 processes the same number of images, 2 or more"),
    ):
        with pytest.raises(HwsimError, match=message):
            ArrayBatches(small_graph, arrays, batch, *settings, part)
    with pytest.raises(HwsimError, match="no labels"):
        ArrayBatches(small_graph, ImageSet(small_images, None), 8, *settings)
    with pytest.raises(HwsimError, match="crop is for images of a folder"):
        batches_of(small_graph, small_images, "crop=0.5")
    with pytest.raises(HwsimError, match="shift and erase are for image arrays"):
        FolderBatches(small_graph, find_images(image_folder), 4, Augmentation(shift=1), 0, CPU)
    with pytest.raises(HwsimError, match="no class folders; training needs labels"):
        FolderBatches(small_graph, find_images(image_folder / "0"), 2, Augmentation(), 0, CPU)
    with pytest.raises(HwsimError, match="small: give training images with --data"):
        training_data(small_graph, None)
    np.savez(tmp_path / "images.npz", images=small_images)
    with pytest.raises(HwsimError, match=r"images\.npz: no labels"):
        training_data(small_graph, tmp_path / "images.npz")
    np.savez(tmp_path / "labelled.npz", images=small_images, labels=arrays.labels)
    found = training_data(small_graph, tmp_path / "labelled.npz", 10)
    assert found.arrays is not None and len(found.arrays.images) == 10
    assert training_data(small_graph, image_folder).source is not None


# --- settings


def test_rate_is_the_cosine() -> None:
    settings = TrainingSettings(epochs=4, learning_rate=1e-3)
    assert [settings.rate(step, 5) for step in (0, 10, 15)] == pytest.approx([1e-3, 5e-4, 1e-3 * (0.5 - 0.5**1.5)])
    assert 0 < settings.rate(19, 5) < 1e-5
    slow = replace(settings, warmup=1)
    assert [slow.rate(step, 5) for step in (0, 4, 5)] == pytest.approx([2e-4, 1e-3, 1e-3])


def test_augmentation_text() -> None:
    for text in ("shift=2,flip,erase=0.25", "flip,crop=0.08", "none"):
        assert str(Augmentation.parse(text)) == text
    for text in ("shift=x", "mirror", "shift", "crop=2", "erase=-1"):
        with pytest.raises(HwsimError, match="augmentation"):
            Augmentation.parse(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs must be 1 or more, not 0"),
        ({"batch": 1}, "batch must be 2 or more, a batch of 1 says nothing"),
        ({"learning_rate": 0.0}, "learning rate must be above 0"),
        ({"learning_rate": float("nan")}, "learning rate must be above 0"),
        ({"warmup": 300.0}, "warmup must be 0 or more and below the 300 epochs"),
        ({"dgd": -1.0}, "dgd must be 0 or more"),
        ({"start": "zero"}, "start must be lsq or omse"),
        ({"precision": "fp8"}, "precision must be fp32 or bf16"),
    ],
)
def test_settings_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(HwsimError, match=message):
        TrainingSettings(**values)
