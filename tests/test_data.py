"""Image sets of every kind: read whole, resized alike, and refused with one clear sentence."""

from __future__ import annotations

import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from golden.errors import HwsimError
from hwsim.data import ImageSet, find_images, load_images

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(12) % 10
SIZE = (32, 32, 3)


def load(path: Path, size: tuple[int, int, int] = SIZE, classes: int | None = 10, **options: Any) -> ImageSet:
    found = {name: options.pop(name) for name in ("part", "limit") if name in options}
    return load_images(find_images(path, **found), size, classes=classes, **options)


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_npz(folder: Path) -> Path:
    np.savez(folder / "set.npz", images=PIXELS, labels=LABELS)
    return folder / "set.npz"


def write_cifar_binary(folder: Path) -> Path:
    rows = PIXELS.transpose(0, 3, 1, 2).reshape(12, -1)
    for number in range(3):  # batches are joined in order
        part = slice(4 * number, 4 * number + 4)
        records = np.concatenate([LABELS[part, None].astype(np.uint8), rows[part]], axis=1)
        (folder / f"data_batch_{number + 1}.bin").write_bytes(records.tobytes())
    (folder / "test_batch.bin").write_bytes(np.concatenate([LABELS[:2, None].astype(np.uint8), rows[:2]], 1).tobytes())
    return folder


def write_cifar_python(folder: Path) -> Path:
    rows = PIXELS.transpose(0, 3, 1, 2).reshape(12, -1)
    batch = {b"data": rows, b"fine_labels": LABELS.tolist(), b"coarse_labels": [0] * 12, b"filenames": [b"a.png"] * 12}
    (folder / "train").write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "meta").write_bytes(b"not a batch")
    return folder


def write_classes(folder: Path) -> Path:
    for index, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        (folder / str(label)).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / str(label) / f"{index:02}.png")
    return folder


NAMES = ["bird", "car", "cat", "deer", "dog", "frog", "horse", "plane", "ship", "truck"]


def write_folders(folder: Path, names: list[str], each: int = 3) -> Path:
    for index in range(each * len(names)):
        path = folder / names[index // each] / f"{index % each}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[index % len(PIXELS)]).save(path)
    return folder


def labels_of(folder: Path, classes: int, limit: int | None = None) -> list[int]:
    labels = load(folder, classes=classes, limit=limit).labels
    assert labels is not None
    return labels.tolist()


def test_a_limit_leaves_the_labels_of_named_folders(tmp_path: Path) -> None:
    """Classes are counted in the whole folder, not among the images that are taken."""
    write_folders(tmp_path, NAMES)
    assert labels_of(tmp_path, 10) == np.repeat(range(10), 3).tolist()
    assert labels_of(tmp_path, 10, limit=5) == [0, 2, 4, 6, 8]
    with pytest.raises(HwsimError, match="10 class folders for a network of 7 classes"):
        labels_of(tmp_path, 7, limit=5)


def test_a_limit_hides_no_unknown_folder(tmp_path: Path) -> None:
    write_folders(tmp_path, ["n01440764", "n99999999"])
    with pytest.raises(HwsimError, match="n99999999 is not an ImageNet-1k wnid"):
        labels_of(tmp_path, 1000, limit=1)
    (tmp_path / "n99999999").rename(tmp_path / "n01443537")
    assert labels_of(tmp_path, 1000, limit=1) == [0]
    Image.fromarray(PIXELS[0]).save(tmp_path / "z.png")
    with pytest.raises(HwsimError, match=r"z\.png: an image beside class folders"):
        labels_of(tmp_path, 1000, limit=1)


@pytest.mark.parametrize("classes", [2, 10, 21843])
def test_wnids_are_for_networks_of_1000_classes(classes: int, tmp_path: Path) -> None:
    write_folders(tmp_path, ["n01440764", "n01443537"])
    assert labels_of(tmp_path, 1000) == [0, 0, 0, 1, 1, 1]
    with pytest.raises(HwsimError, match=f"are ImageNet-1k wnids, and the network has {classes} classes"):
        labels_of(tmp_path, classes)


@pytest.mark.parametrize("classes", [3, 1000])
def test_wnids_beside_other_names_are_refused(classes: int, tmp_path: Path) -> None:
    """With as many folders as classes they would be labels 0, 1, 2 by their order."""
    write_folders(tmp_path, ["n01440764", "n01443537", "extra"])
    with pytest.raises(HwsimError, match="n01440764 is a wnid and extra is not"):
        labels_of(tmp_path, classes)
    assert load(tmp_path, classes=None).labels is None  # calibration


@pytest.mark.parametrize("write", [write_npz, write_cifar_binary, write_cifar_python])
def test_arrays_are_read_whole(write: Callable[[Path], Path], tmp_path: Path) -> None:
    seen: list[int] = []
    found = load(write(tmp_path), part="train", progress=seen.append)
    assert np.array_equal(found.images, PIXELS)
    assert found.labels is not None
    assert found.labels.tolist() == LABELS.tolist()
    assert sum(seen) == 12


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_by_part(suffix: str, tmp_path: Path) -> None:
    grey = PIXELS[..., 0]
    for prefix, part in (("train", slice(0, 8)), ("t10k", slice(8, 12))):
        for name, array in (("images-idx3", grey), ("labels-idx1", LABELS.astype(np.uint8))):
            content = idx(array[part])
            content = gzip.compress(content) if suffix else content
            (tmp_path / f"{prefix}-{name}-ubyte{suffix}").write_bytes(content)
    test, train = (load(tmp_path, (32, 32, 1), part=part) for part in ("test", "train"))
    assert np.array_equal(train.images[..., 0], grey[:8])
    assert np.array_equal(test.images[..., 0], grey[8:])
    assert test.labels is not None
    assert test.labels.tolist() == LABELS[8:].tolist()
    single = load(tmp_path / f"train-images-idx3-ubyte{suffix}", (32, 32, 1), limit=4)
    assert np.array_equal(single.images[..., 0], grey[:8:2])  # spread over the set


def test_cifar_test_part(tmp_path: Path) -> None:
    assert len(load(write_cifar_binary(tmp_path), part="test").images) == 2
    (tmp_path / "python").mkdir()
    write_cifar_python(tmp_path / "python")
    with pytest.raises(HwsimError, match=r"has no CIFAR file test_batch or test; the test images are missing"):
        load(tmp_path / "python", part="test")


def test_all_sources_are_resized_alike(tmp_path: Path) -> None:
    """A class folder and an archive of the same pixels give the same images of another size."""
    (tmp_path / "classes").mkdir()
    folder = load(write_classes(tmp_path / "classes"), (24, 24, 3), crop_ratio=0.875)
    archive = load(write_npz(tmp_path), (24, 24, 3), crop_ratio=0.875)
    assert folder.labels is not None
    assert archive.labels is not None
    order = np.argsort(LABELS, kind="stable")  # folders come in the order of their names
    assert np.array_equal(folder.images, archive.images[order])
    assert folder.labels.tolist() == LABELS[order].tolist()
    # Bicubic to 27 pixels and the middle 24, as timm's evaluation transform does it.
    resized = Image.fromarray(PIXELS[3]).resize((27, 27), Image.Resampling.BICUBIC).crop((2, 2, 26, 26))
    assert np.array_equal(archive.images[3], np.asarray(resized))


def test_colours_follow_the_network(tmp_path: Path) -> None:
    grey = load(write_npz(tmp_path), (32, 32, 1))
    assert np.array_equal(grey.images[0, ..., 0], np.asarray(Image.fromarray(PIXELS[0]).convert("L")))
    np.savez(tmp_path / "grey.npz", images=PIXELS[..., 0])
    colour = load(tmp_path / "grey.npz")
    assert (colour.images == PIXELS[..., :1]).all()
    assert colour.labels is None


def test_a_set_larger_than_memory_allows_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwsim.data._LARGEST_IN_MEMORY", 1000)
    found = load(write_npz(tmp_path))
    assert isinstance(found.images, np.memmap)
    assert np.array_equal(found.images, PIXELS)


def test_the_first_bad_image_of_a_folder_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path)
    for name in ("5/05.png", "3/03.png"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(HwsimError, match=r"3/03\.png: not a readable image"):
        load(tmp_path)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: np.savez(f / "set.npz", pictures=PIXELS), "has no array 'images' \\(it has pictures\\)"),
        (lambda f: np.savez(f / "set.npz", images=PIXELS / 255), "images are float64 \\[12, 32, 32, 3\\]; they must"),
        (lambda f: np.savez(f / "set.npz", images=PIXELS.transpose(0, 3, 1, 2)), "they must be uint8 \\[N, H, W, 1 or"),
        (lambda f: np.savez(f / "set.npz", images=PIXELS[:0]), "set.npz: holds no images"),
        (
            lambda f: np.savez(f / "set.npz", images=PIXELS, labels=LABELS[:5]),
            "labels are int64 \\[5\\]; they must be 12",
        ),
        (lambda f: np.savez(f / "set.npz", images=PIXELS, labels=LABELS / 1), "labels are float64"),
        (lambda f: np.savez(f / "set.npz", images=PIXELS, labels=LABELS - 1), "label -1 is below 0"),
        (lambda f: np.savez(f / "set.npz", images=PIXELS, labels=LABELS + 1), "label 10 is past the network's 10 cl"),
        (lambda f: (f / "set.npz").write_bytes(b"PK no more"), "set.npz: not a readable .npz"),
        (lambda f: f / "nowhere", "nowhere: there is no such image folder or file"),
        (lambda f: f, "no images in it"),
        (lambda f: _file(f / "notes.txt", b"x"), "is neither .npz, IDX images nor a CIFAR batch"),
        (lambda f: _file(f / "t10k-images-idx3-ubyte", idx(PIXELS[..., 0])[:-1]), "is not a complete IDX file"),
        (lambda f: _file(f / "t10k-images-idx3-ubyte.gz", b"x"), "cannot be read as gzip"),
        (lambda f: _file(f / "train-images-idx3-ubyte", b"").parent, "has no t10k-images-idx3-ubyte file"),
        (lambda f: _file(f / "test_batch.bin", b"x" * 3072), "is not a complete CIFAR batch"),
        (lambda f: _file(f / "test_batch", b"x"), "test_batch: is not a CIFAR batch"),
        (lambda f: _file(f / "test_batch", pickle.dumps(Harmful())), "it asks for builtins.print"),
        (
            lambda f: _file(f / "test_batch", pickle.dumps({b"data": PIXELS, b"labels": [1]})),
            "its data are uint8 \\[12",
        ),
    ],
)
def test_what_is_no_image_set_is_refused(
    make: Callable[[Path], object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(tmp_path)
    with pytest.raises(HwsimError, match=message):
        load(made if isinstance(made, Path) else tmp_path / "set.npz")
    assert capsys.readouterr().out == ""


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
