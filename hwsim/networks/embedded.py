"""The embedded network: a small DeiT-style ViT for Fashion-MNIST, with its data, shipped inside the package.

It is the default network of every command. The architecture is DeiT's [1]_ (class token, learned position
embedding, pre-norm blocks, GELU) at a size whose weights fit the on-chip memory of a mid-size FPGA at 8 bit:
305 034 parameters. ``hwsim/assets/README.md`` holds the provenance and licence of the shipped files, and the
command and result of the training run.

Reading the data and the raw weights needs NumPy and safetensors only; `build_model` imports PyTorch and timm.

References
----------
.. [1] H. Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021.
"""

from __future__ import annotations

import hashlib
import io
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from golden.errors import HwsimError
from hwsim.data import ImageSet, normalise

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

# Keyword arguments of timm's VisionTransformer: 7 x 7 patches and one class token are 50 tokens.
ARCHITECTURE: dict[str, Any] = {
    "img_size": 28,
    "patch_size": 4,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 64,
    "depth": 6,
    "num_heads": 4,
    "mlp_ratio": 4,
    "class_token": True,
    "global_pool": "token",
}

# Per-channel normalisation of pixel values p in 0..255: (p / 255 - MEAN) / STD, the moments of the 60 000
# training images rounded to four digits.
MEAN: tuple[float, ...] = (0.2860,)
STD: tuple[float, ...] = (0.3530,)

CLASS_NAMES: tuple[str, ...] = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

CHECKPOINT_NAME = "embedded.safetensors"
DATA_NAME = "fashion_mnist.npz"

# SHA-256 of the shipped files. Whoever retrains or repacks them changes these lines too.
SHA256: dict[str, str] = {
    CHECKPOINT_NAME: "7d4a8783bbcb631ff92d25d375d57b92b1d2746e757e0e9ad52e8a94673d7f10",
    DATA_NAME: "10eacb7c507d82776c983948b727d0b24d4aa89490a8abb152adec394e1d3538",
}


def assets_folder() -> Path:
    """Folder of the shipped checkpoint and data."""
    return Path(str(files("hwsim").joinpath("assets")))


def checkpoint_path() -> Path:
    """Path of the shipped checkpoint: fp32 safetensors with timm's key names."""
    return assets_folder() / CHECKPOINT_NAME


def read_asset(name: str, folder: Path | None = None) -> bytes:
    """Bytes of a shipped file after its checksum was verified.

    Parameters
    ----------
    name : str
        A key of `SHA256`.
    folder : Path, optional
        Where to look; the package's own assets by default.

    Raises
    ------
    HwsimError
        The file cannot be read or is not the shipped one.
    """
    path = (folder if folder is not None else assets_folder()) / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise HwsimError(f"{path}: cannot be read ({error.strerror}); reinstall vit-hwsim") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise HwsimError(
            f"{path}: SHA-256 is {digest} where {SHA256[name]} was shipped, the file is damaged; reinstall vit-hwsim"
        )
    return content


def _load_images(prefix: str, folder: Path | None) -> ImageSet:
    # The archive is an .npz whose members are LZMA-compressed, which NumPy reads and which saves 0.6 MB over deflate.
    with np.load(io.BytesIO(read_asset(DATA_NAME, folder)), allow_pickle=False) as archive:
        return ImageSet(archive[f"{prefix}_images"][..., np.newaxis], archive[f"{prefix}_labels"])


def load_test_set(folder: Path | None = None) -> ImageSet:
    """The whole Fashion-MNIST test set, 10 000 images in their published order.

    Parameters
    ----------
    folder : Path, optional
        Folder that holds the data file; the package's own assets by default.

    Raises
    ------
    HwsimError
        The data file is missing or damaged.
    """
    return _load_images("test", folder)


def load_calibration_set(folder: Path | None = None) -> ImageSet:
    """1 024 training images for calibration: seeded choice, 102 or 103 of each class, in shuffled order.

    Every prefix is therefore a random sample, and a calibration with fewer images takes the first ones.

    Parameters
    ----------
    folder : Path, optional
        Folder that holds the data file; the package's own assets by default.

    Raises
    ------
    HwsimError
        The data file is missing or damaged.
    """
    return _load_images("calibration", folder)


def load_weights(folder: Path | None = None) -> dict[str, NDArray[np.float32]]:
    """Weights of the shipped checkpoint by timm's key names, without PyTorch.

    Parameters
    ----------
    folder : Path, optional
        Folder that holds the checkpoint; the package's own assets by default.

    Raises
    ------
    HwsimError
        The checkpoint is missing or damaged.
    """
    from safetensors.numpy import load

    return load(read_asset(CHECKPOINT_NAME, folder))


def normalize(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Network input for given pixels: ``(p / 255 - MEAN) / STD``, every operation rounded to float32.

    Parameters
    ----------
    images : uint8 array [N, H, W, C]
        C equals ``len(MEAN)``.

    Returns
    -------
    float32 array [N, C, H, W]
    """
    return np.ascontiguousarray(normalise(images, MEAN, STD).transpose(0, 3, 1, 2))


def build_model(pretrained: bool = True) -> VisionTransformer:
    """The network as timm's `VisionTransformer`, in evaluation mode.

    Parameters
    ----------
    pretrained : bool
        Load the shipped weights; otherwise the weights are timm's random initialisation, drawn from PyTorch's
        global generator.

    Raises
    ------
    HwsimError
        The shipped checkpoint is missing or damaged.
    """
    import torch
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(**ARCHITECTURE)
    if pretrained:
        model.load_state_dict({name: torch.from_numpy(value) for name, value in load_weights().items()})
    return model.eval()
