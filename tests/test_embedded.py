"""The embedded network: shipped data and checkpoint, their checksums, accuracy, and the training script."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from golden.errors import HwsimError
from hwsim.data import ImageSet
from hwsim.image_arrays import read_idx
from hwsim.networks import embedded, fashion_mnist
from hwsim.networks.fashion_mnist import IDX_NAMES, pack_data, read_fashion_mnist

# SHA-256 of the uncompressed IDX files as published, computed with gunzip and sha256sum.
TEST_IMAGES_IDX = "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
TEST_LABELS_IDX = "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


@pytest.fixture(scope="module")
def test_set() -> ImageSet:
    return embedded.load_test_set()


@pytest.fixture(scope="module")
def calibration_set() -> ImageSet:
    return embedded.load_calibration_set()


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory, calibration_set: ImageSet) -> Path:
    """A folder like the published one: 160 training and 32 test images."""
    folder = tmp_path_factory.mktemp("fashion-mnist")
    images, labels = calibration_set.images[..., 0], calibration_set.labels
    for name, array in zip(IDX_NAMES, (images[:160], labels[:160], images[-32:], labels[-32:]), strict=True):
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return folder


def test_shipped_files_stay_under_8_mb() -> None:
    assert sum(path.stat().st_size for path in embedded.assets_folder().iterdir()) < 7_500_000


def test_test_set_is_the_published_one(test_set: ImageSet) -> None:
    assert test_set.images.shape == (10_000, 28, 28, 1)
    assert test_set.images.dtype == test_set.labels.dtype == np.uint8
    assert hashlib.sha256(idx(test_set.images[..., 0])).hexdigest() == TEST_IMAGES_IDX
    assert hashlib.sha256(idx(test_set.labels)).hexdigest() == TEST_LABELS_IDX
    assert len(embedded.CLASS_NAMES) == 10


def test_calibration_set_is_balanced(calibration_set: ImageSet) -> None:
    assert calibration_set.images.shape == (1024, 28, 28, 1)
    assert calibration_set.images.dtype == calibration_set.labels.dtype == np.uint8
    assert len({image.tobytes() for image in calibration_set.images}) == 1024
    assert sorted(np.bincount(calibration_set.labels, minlength=10).tolist()) == [102] * 6 + [103] * 4
    # A prefix serves as a smaller calibration set, so it holds every class too.
    assert len(set(calibration_set.labels[:64].tolist())) == 10


@pytest.mark.skipif(not fashion_mnist.DEBIAN_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_calibration_images_are_published_training_images(
    calibration_set: ImageSet, test_set: ImageSet, tmp_path: Path
) -> None:
    data = read_fashion_mnist()
    with np.load(embedded.assets_folder() / embedded.DATA_NAME) as archive:
        indices = archive["calibration_indices"]
    assert len(set(indices.tolist())) == 1024
    np.testing.assert_array_equal(data.train_images[indices], calibration_set.images[..., 0])
    np.testing.assert_array_equal(data.train_labels[indices], calibration_set.labels)
    np.testing.assert_array_equal(data.test_images, test_set.images[..., 0])
    # The same command makes the same choice (the compressed bytes may change with the library that compresses).
    short = replace(data, test_images=data.test_images[:1], test_labels=data.test_labels[:1])
    pack_data(tmp_path / "data.npz", short)
    with np.load(tmp_path / "data.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["calibration_indices"], indices)


@pytest.mark.parametrize("name", embedded.SHA256)
@pytest.mark.parametrize("place", [0, 500_000, -1])
def test_one_wrong_bit_is_refused(name: str, place: int, tmp_path: Path) -> None:
    content = bytearray((embedded.assets_folder() / name).read_bytes())
    (tmp_path / name).write_bytes(content)
    assert embedded.read_asset(name, tmp_path) == bytes(content)
    content[place] ^= 1
    (tmp_path / name).write_bytes(content)
    owner = {network.checkpoint: key for key, network in embedded.NETWORKS.items()}.get(name)
    with pytest.raises(HwsimError, match=rf"{name}: SHA-256 .* damaged; reinstall vit-hwsim"):
        embedded.load_test_set(tmp_path) if owner is None else embedded.load_weights(tmp_path, owner)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(HwsimError, match=r"fashion_mnist\.npz: cannot be read .*; reinstall"):
        embedded.load_calibration_set(tmp_path)


def test_readme_states_the_checksums() -> None:
    text = (embedded.assets_folder() / "README.md").read_text()
    assert all(digest in text for digest in (*embedded.SHA256.values(), TEST_IMAGES_IDX, TEST_LABELS_IDX))


def test_checkpoint_has_the_keys_and_shapes_of_timm() -> None:
    pytest.importorskip("timm")
    weights = embedded.load_weights()
    fresh = embedded.build_model(pretrained=False).state_dict()
    assert {name: value.shape for name, value in weights.items()} == {k: tuple(v.shape) for k, v in fresh.items()}
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in weights.values())
    assert weights["pos_embed"].shape == (1, 50, 64)
    # Patch embedding, class token and positions, 6 blocks of 2 norms, qkv, proj, fc1, fc2, final norm, head.
    block = 2 * 128 + 64 * 192 + 192 + 64 * 64 + 64 + 64 * 256 + 256 + 256 * 64 + 64
    assert sum(value.size for value in weights.values()) == 16 * 64 + 64 + 51 * 64 + 6 * block + 128 + 64 * 10 + 10


def test_swin_checkpoint_has_the_keys_and_shapes_of_timm() -> None:
    pytest.importorskip("timm")
    weights = embedded.load_weights(name="embedded-swin")
    fresh = embedded.build_model(pretrained=False, name="embedded-swin").state_dict()
    assert {name: value.shape for name, value in weights.items()} == {k: tuple(v.shape) for k, v in fresh.items()}
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in weights.values())
    assert embedded.checkpoint_path("embedded-swin").stat().st_size < 1_000_000
    # A block: two norms, qkv, proj, fc1, fc2, and a bias of 13 x 13 relative positions a head.
    blocks = [(c, h) for c, h in ((32, 2), (64, 4)) for _ in range(4)]
    parameters = sum(4 * c + 12 * c * c + 3 * c + c + 4 * c + c + 169 * h for c, h in blocks)
    # Patches with their norm, merging from four times 32 channels to 64, the last norm, the head.
    parameters += 4 * 32 + 32 + 64 + 2 * 128 + 128 * 64 + 128 + 64 * 10 + 10
    assert sum(value.size for value in weights.values()) == parameters


def test_normalize_rounds_each_operation_to_float32() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(2, 16, 8, 1)
    normalized = embedded.normalize(pixels)
    assert normalized.shape == (2, 1, 16, 8)
    assert normalized.dtype == np.float32
    # In double precision and then to float32: for one operation on float32 operands that is correctly rounded.
    mean, std = float32(embedded.MEAN[0]), float32(embedded.STD[0])
    assert normalized.ravel().tolist() == [float32(float32(float32(p / 255) - mean) / std) for p in range(256)]


@pytest.mark.parametrize(("name", "count"), [("embedded", 2000), ("embedded-swin", 1000)])
def test_float_accuracy(name: str, count: int, test_set: ImageSet) -> None:
    """On a part: the whole set takes too long on a busy machine."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    model = embedded.build_model(name=name)
    with torch.inference_mode():
        inputs = torch.from_numpy(embedded.normalize(test_set.images[:count]))
        guesses = np.concatenate([model(part).argmax(1).numpy() for part in inputs.split(500)])
    assert np.mean(guesses == test_set.labels[:count]) >= 0.925


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Steps this small are slower on several threads, and very slow where other programs use the cores."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train_small(output: Path, data: Path, **changes: Any) -> Any:
    from hwsim.networks.train import STUDENT, TEACHER, train

    arguments: dict[str, Any] = {
        "student": replace(STUDENT, epochs=2, batch_size=32),
        "teacher": replace(TEACHER, epochs=1, batch_size=32),
        "teacher_width": 2,
        "held_out": 64,
        "device": "cpu",
    }
    return train(output, data_dir=data, **(arguments | changes))


@pytest.mark.usefixtures("one_thread")
def test_training_is_reproducible_from_its_seed(small_data: Path, tmp_path: Path) -> None:
    import torch

    seen: list[tuple[str, int, int]] = []
    random_state = torch.random.get_rng_state()
    report = train_small(tmp_path / "a", small_data, progress=lambda *step: seen.append(step[:3]))
    torch.rand(3)  # the global generator must not matter
    train_small(tmp_path / "b", small_data)
    train_small(tmp_path / "other", small_data, seed=1)
    first, second, other = (load_file(tmp_path / name) for name in ("a", "b", "other"))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)
    assert {name: value.shape for name, value in first.items()} == {
        k: v.shape for k, v in embedded.load_weights().items()
    }
    assert seen == [("teacher 1", 1, 1), ("student", 1, 2), ("student", 2, 2)]
    assert report.training_images == 96
    assert all(0 <= top1 <= 100 for top1 in (report.teacher_held_out_top1, report.held_out_top1, report.test_top1))
    with safe_open(tmp_path / "a", "np") as file:
        record = json.loads(file.metadata()["training"])
    assert record["seed"] == 0
    assert record["arguments"]["student"]["epochs"] == 2
    torch.random.set_rng_state(random_state)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.usefixtures("one_thread")
def test_training_of_the_swin_writes_its_checkpoint(small_data: Path, tmp_path: Path) -> None:
    """The weights that were measured are those of the file: rounded to float16."""
    from hwsim.networks.train import STUDENT

    student = replace(STUDENT, epochs=1, batch_size=32)
    train_small(tmp_path / "swin", small_data, network="embedded-swin", student=student)
    stored = load_file(tmp_path / "swin")
    assert all(value.dtype == np.float16 for value in stored.values())
    expected = {name: value.shape for name, value in embedded.load_weights(name="embedded-swin").items()}
    assert {name: value.shape for name, value in stored.items()} == expected
    with safe_open(tmp_path / "swin", "np") as file:
        assert json.loads(file.metadata()["training"])["arguments"]["network"] == "embedded-swin"


@pytest.mark.usefixtures("one_thread")
def test_training_learns_the_labels(small_data: Path, tmp_path: Path) -> None:
    """Without a teacher, the loss falls well below that of a constant guess, ln 10 = 2.3."""
    from hwsim.networks.train import STUDENT

    losses: list[float] = []
    student = replace(STUDENT, epochs=8, batch_size=16, mixup=0.0, erase=0.0, shift=0, learning_rate=1e-3)
    changes = {"student": student, "teachers": 0, "held_out": 0}
    report = train_small(tmp_path / "c", small_data, progress=lambda *step: losses.append(step[3]), **changes)
    assert losses[-1] < 2.0 < losses[0]
    assert report.held_out_top1 is None
    assert report.teacher_held_out_top1 is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": 160}, "held_out is 160, choose 0 to 159"),
        ({"held_out": 150}, "batch_size 32; choose >= 1, <= 10"),
        ({"seed": 0, "output": "."}, "cannot be written"),
    ],
)
def test_bad_arguments_write_nothing(changes: dict[str, Any], message: str, small_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    with pytest.raises(HwsimError, match=message):
        train_small(tmp_path / changes.pop("output", "d"), small_data, **changes)
    assert list(tmp_path.iterdir()) == []


def test_damaged_data_files_are_named(small_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(small_data, folder)
    path = folder / f"{IDX_NAMES[0]}.gz"
    whole = path.read_bytes()
    content = gzip.decompress(whole)
    for damaged in (b"", whole[:-20], gzip.compress(content[:-1]), gzip.compress(b"\0\0\x0d" + content[3:]), b"abc"):
        path.write_bytes(damaged)
        with pytest.raises(HwsimError, match=rf"{IDX_NAMES[0]}.gz: .*; fetch the file again"):
            read_idx(path)
    path.write_bytes(gzip.compress(idx(np.zeros((159, 28, 28), np.uint8))))
    with pytest.raises(HwsimError, match=r"shape \(159, 28, 28\) for \(160,\) labels"):
        read_fashion_mnist(folder)
    path.unlink()
    with pytest.raises(HwsimError, match="cannot be read"):
        read_fashion_mnist(folder)


def test_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    def offline(*_: object, **__: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "missing")
    monkeypatch.setattr(datasets, "FashionMNIST", offline)
    with pytest.raises(HwsimError, match=r"download succeed.*install the Debian package dataset-fashion-mnist"):
        read_fashion_mnist()
