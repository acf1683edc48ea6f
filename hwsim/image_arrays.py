"""Image sets that come as arrays: IDX files (MNIST, Fashion-MNIST), CIFAR-10 and CIFAR-100, and ``.npz``.

References
----------
Formats: Y. LeCun, "The MNIST database"; A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images",
2009, and its data page (python and binary versions).
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from golden.errors import HwsimError

PARTS = ("train", "test")
_IDX_PREFIX = {"train": "train", "test": "t10k"}
_CIFAR10 = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
_CIFAR_PIXELS = 3 * 32 * 32


class ImageArrays(NamedTuple):
    """A whole set in memory.

    Attributes
    ----------
    images : ndarray of uint8 [N, H, W, C]
        C is 1 or 3.
    labels : ndarray of int64 [N] or None
    """

    images: np.ndarray
    labels: np.ndarray | None


def find_arrays(path: Path, part: str) -> ImageArrays | None:
    """Read an array file, or one part of a folder of such files; None where the path is nothing of the kind.

    Parameters
    ----------
    path : Path
        An ``.npz`` with ``images`` (uint8 [N, H, W, C] or [N, H, W]) and perhaps ``labels``; an IDX file of images
        with its file of labels beside it; a CIFAR batch; or a folder of IDX files or CIFAR batches.
    part : {"train", "test"}
        Which files of a folder.

    Raises
    ------
    HwsimError
        A file that is damaged, empty or not of its format, or a folder without that part.
    """
    if path.is_file():
        if path.suffix == ".npz":
            return _checked(path, *_read_npz(path))
        if _is_idx(path):
            return _checked(path, *_read_idx_pair(path))
        if _is_cifar(path):
            return _checked(path, *_read_cifar(path))
        return None
    if any(path.glob("*-images-idx3-ubyte*")):
        files = sorted(path.glob(f"{_IDX_PREFIX[part]}-images-idx3-ubyte*"))
        if not files:
            raise HwsimError(
                f"{path}: has no {_IDX_PREFIX[part]}-images-idx3-ubyte file; the {part} images are missing"
            )
        return _checked(files[0], *_read_idx_pair(files[0]))
    batches = [file for file in sorted(path.iterdir()) if file.is_file() and _is_cifar(file)]
    if not batches:
        return None
    chosen = [file for file in batches if file.stem in (part, *_CIFAR10[part])]
    if not chosen:
        raise HwsimError(f"{path}: has no CIFAR file {_CIFAR10[part][0]} or {part}; the {part} images are missing")
    read = [_checked(file, *_read_cifar(file)) for file in chosen]
    labels = [batch.labels for batch in read if batch.labels is not None]
    return ImageArrays(np.concatenate([batch.images for batch in read]), np.concatenate(labels))


def _is_idx(path: Path) -> bool:
    return "-images-idx3-ubyte" in path.name


def _is_cifar(path: Path) -> bool:
    names = {*PARTS, *(name for names in _CIFAR10.values() for name in names)}
    return path.stem in names and path.suffix in ("", ".bin")


def _checked(path: Path, images: np.ndarray, labels: np.ndarray | None) -> ImageArrays:
    """The set after its shapes and types were checked."""
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise HwsimError(
            f"{path}: images are {images.dtype} {list(images.shape)}; they must be uint8 [N, H, W, 1 or 3] or [N, H, W]"
        )
    if not images.size:
        raise HwsimError(f"{path}: holds no images")
    if labels is not None:
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            raise HwsimError(
                f"{path}: labels are {labels.dtype} {list(labels.shape)}; they must be {len(images)} integers, "
                "one an image"
            )
        labels = labels.astype(np.int64)
        if labels.min() < 0:
            raise HwsimError(f"{path}: label {labels.min()} is below 0; labels are class indices")
    return ImageArrays(images, labels)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "images" not in archive:
                found = ", ".join(sorted(archive)) or "nothing"
                raise HwsimError(
                    f"{path}: has no array 'images' (it has {found}); save images and labels by these names"
                )
            return archive["images"], archive.get("labels")
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise HwsimError(f"{path}: not a readable .npz ({error}); write it with numpy.savez") from None


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes, gzip-compressed or not.

    Returns
    -------
    ndarray of uint8

    Raises
    ------
    HwsimError
        The file cannot be read or is not such a file.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise HwsimError(f"{path}: cannot be read as gzip ({error}); fetch the file again") from error
    dimensions = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    offset = 4 + 4 * dimensions
    shape = struct.unpack_from(f">{dimensions}I", content, 4) if dimensions and len(content) >= offset else ()
    if not shape or len(content) != offset + math.prod(shape):
        raise HwsimError(f"{path}: is not a complete IDX file of unsigned bytes; fetch the file again")
    return np.frombuffer(content, np.uint8, offset=offset).reshape(shape)


def _read_idx_pair(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    labels = path.with_name(path.name.replace("-images-idx3-", "-labels-idx1-"))
    return read_idx(path), read_idx(labels) if labels.is_file() else None


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays, lists and dictionaries; a file that asks for anything else is refused, not run."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _read_cifar(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    content = path.read_bytes()
    if path.suffix == ".bin":
        # One label byte in CIFAR-10; in CIFAR-100 the coarse label, then the fine one.
        label_bytes = 2 if path.stem in PARTS else 1
        if not content or len(content) % (label_bytes + _CIFAR_PIXELS):
            raise HwsimError(f"{path}: is not a complete CIFAR batch; fetch the file again")
        records = np.frombuffer(content, np.uint8).reshape(-1, label_bytes + _CIFAR_PIXELS)
        return _cifar_images(records[:, label_bytes:]), records[:, label_bytes - 1]
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        labels = batch[b"fine_labels"] if b"fine_labels" in batch else batch[b"labels"]
        pixels = np.asarray(batch[b"data"])
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), _CIFAR_PIXELS):
            raise ValueError(f"its data are {pixels.dtype} {list(pixels.shape)} for {len(labels)} labels")
        return _cifar_images(pixels), np.array(labels, np.int64)
    except Exception as error:  # a damaged pickle raises almost anything
        raise HwsimError(f"{path}: is not a CIFAR batch ({error}); fetch the file again") from None


def _cifar_images(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
