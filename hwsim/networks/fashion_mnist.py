"""Fashion-MNIST as published (four gzip-compressed IDX files), and the data file of the package made from it.

References
----------
H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
arXiv:1708.07747, 2017.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from golden.errors import HwsimError
from golden.files import write_atomically
from hwsim.image_arrays import read_idx
from hwsim.networks.embedded import CLASS_NAMES

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
CACHE_FOLDER = Path.home() / ".cache" / "vit-hwsim"
IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CALIBRATION_IMAGES = 1024


@dataclass(frozen=True)
class FashionMnist:
    """The four files of the data set as uint8 arrays: images [N, 28, 28], labels [N]."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]


def read_fashion_mnist(data_dir: Path | None = None) -> FashionMnist:
    """Read the data set from a folder with its four ``.gz`` files.

    Parameters
    ----------
    data_dir : Path, optional
        Default: the folder of Debian's package dataset-fashion-mnist, else a download by torchvision.

    Raises
    ------
    HwsimError
        The files are missing, damaged or of unexpected shapes.
    """
    folder = data_dir
    if folder is None:
        folder = DEBIAN_FOLDER if DEBIAN_FOLDER.is_dir() else _download()
    arrays = [read_idx(folder / f"{name}.gz") for name in IDX_NAMES]
    for images, labels, name in ((arrays[0], arrays[1], IDX_NAMES[0]), (arrays[2], arrays[3], IDX_NAMES[2])):
        if images.shape != (len(labels), 28, 28) or labels.ndim != 1 or labels.max(initial=0) > 9:
            raise HwsimError(
                f"{folder / name}.gz: has shape {images.shape} for {labels.shape} labels, expected [N, 28, 28] with N"
                " labels in 0..9; give a folder with the Fashion-MNIST files"
            )
    return FashionMnist(*arrays)


def _download() -> Path:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(CACHE_FOLDER), download=True)
    except (OSError, RuntimeError) as error:
        raise HwsimError(
            f"Fashion-MNIST: neither {DEBIAN_FOLDER} exists nor did the download succeed ({error}); install the Debian"
            " package dataset-fashion-mnist or give the folder with the four .gz files"
        ) from error
    return CACHE_FOLDER / "FashionMNIST" / "raw"


def pack_data(output: Path, data: FashionMnist, seed: int = 0) -> str:
    """Write the data file of the package: the test set and a class-balanced choice of calibration images.

    Parameters
    ----------
    output : Path
        An ``.npz`` file, see `hwsim.networks.embedded.DATA_NAME`.
    data : FashionMnist
    seed : int
        Of the choice; `calibration_indices` in the file records it.

    Returns
    -------
    str
        SHA-256 of the file.
    """
    # RandomState: its stream is frozen across NumPy versions.
    random = np.random.RandomState(seed)
    order = random.permutation(len(data.train_labels))
    rank_in_class = np.empty(len(order), np.int64)
    for label in range(len(CLASS_NAMES)):
        of_class = np.flatnonzero(data.train_labels[order] == label)
        rank_in_class[of_class] = np.arange(len(of_class))
    # One image of each class in turn, then shuffled so that every prefix is a random sample.
    chosen = order[np.argsort(rank_in_class, kind="stable")[:CALIBRATION_IMAGES]]
    chosen = random.permutation(chosen).astype(np.uint16)
    members = {
        "test_images": data.test_images,
        "test_labels": data.test_labels,
        "calibration_images": data.train_images[chosen],
        "calibration_labels": data.train_labels[chosen],
        "calibration_indices": chosen,
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for name, array in members.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")  # its fixed date keeps the file reproducible
            entry.compress_type = zipfile.ZIP_LZMA
            packed.writestr(entry, member.getvalue())
    write_atomically(output, archive.getvalue())
    return hashlib.sha256(archive.getvalue()).hexdigest()
