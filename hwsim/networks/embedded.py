"""The embedded networks: a small DeiT-style ViT and a small Swin for Fashion-MNIST, shipped with their data.

``embedded`` is the default network of every command. Its architecture is DeiT's [1]_ (class token, learned position
embedding, pre-norm blocks, GELU) at a size whose weights fit the on-chip memory of a mid-size FPGA at 8 bit:
305 034 parameters. ``embedded-swin`` is a Swin [2]_ of two stages with 264 258 parameters: 14 x 14 patches in four
windows of 7 x 7, every second block shifted, then one merging to 7 x 7. ``hwsim/assets/README.md`` holds the
provenance and licence of the shipped files, and the command and result of the training runs.

Reading the data and the raw weights needs NumPy and safetensors only; `build_model` imports PyTorch and timm.

References
----------
.. [1] H. Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021.
.. [2] Z. Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from golden.errors import HwsimError
from hwsim.data import ImageSet, normalise

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class EmbeddedNetwork:
    """What is shipped of one network.

    Attributes
    ----------
    family : {"vit", "swin"}
        timm's VisionTransformer or SwinTransformer.
    architecture : dict
        Keyword arguments of the timm class.
    checkpoint : str
        File name of the shipped weights.
    half : bool
        Weights are shipped as float16 (and were rounded to it before their accuracy was measured).
    """

    family: str
    architecture: dict[str, Any]
    checkpoint: str
    half: bool


EMBEDDED = "embedded"
EMBEDDED_SWIN = "embedded-swin"
NETWORKS: dict[str, EmbeddedNetwork] = {
    # 7 x 7 patches and one class token are 50 tokens.
    EMBEDDED: EmbeddedNetwork(
        family="vit",
        architecture={
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
        },
        checkpoint="embedded.safetensors",
        half=False,
    ),
    # 14 x 14 patches, four windows of 49 tokens and a shift by 3; then 7 x 7 patches, one window.
    EMBEDDED_SWIN: EmbeddedNetwork(
        family="swin",
        architecture={
            "img_size": 28,
            "patch_size": 2,
            "in_chans": 1,
            "num_classes": 10,
            "embed_dim": 32,
            "depths": (4, 4),
            "num_heads": (2, 4),
            "window_size": 7,
            "mlp_ratio": 4,
            "drop_path_rate": 0.0,
        },
        checkpoint="embedded_swin.safetensors",
        half=True,
    ),
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

CHECKPOINT_NAME = NETWORKS[EMBEDDED].checkpoint
DATA_NAME = "fashion_mnist.npz"

# SHA-256 of the shipped files. Whoever retrains or repacks them changes these lines too.
SHA256: dict[str, str] = {
    CHECKPOINT_NAME: "7d4a8783bbcb631ff92d25d375d57b92b1d2746e757e0e9ad52e8a94673d7f10",
    NETWORKS[EMBEDDED_SWIN].checkpoint: "82d257f2a6596c3c2d95f43b481c8a1d21ebf0df236c6883b0a0e9202fef63d2",
    DATA_NAME: "10eacb7c507d82776c983948b727d0b24d4aa89490a8abb152adec394e1d3538",
}


def assets_folder() -> Path:
    """Folder of the shipped checkpoint and data."""
    return Path(str(files("hwsim").joinpath("assets")))


def checkpoint_path(name: str = EMBEDDED) -> Path:
    """Path of a network's shipped checkpoint: safetensors with timm's key names."""
    return assets_folder() / NETWORKS[name].checkpoint


def read_asset(name: str, folder: Path | None = None, shipped: str | None = None) -> bytes:
    """Bytes of a shipped file after its checksum was verified.

    Parameters
    ----------
    name : str
        Of the file.
    folder : Path, optional
        Where to look; the package's own assets by default.
    shipped : str, optional
        Its SHA-256; by default that of the key `name` of `SHA256`.

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
    digest, expected = hashlib.sha256(content).hexdigest(), SHA256[name] if shipped is None else shipped
    if digest != expected:
        raise HwsimError(
            f"{path}: SHA-256 is {digest} where {expected} was shipped, the file is damaged; reinstall vit-hwsim"
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


def load_weights(folder: Path | None = None, name: str = EMBEDDED) -> dict[str, NDArray[np.float32]]:
    """Weights of a shipped checkpoint by timm's key names, without PyTorch.

    Parameters
    ----------
    folder : Path, optional
        Folder that holds the checkpoint; the package's own assets by default.
    name : str
        A key of `NETWORKS`.

    Raises
    ------
    HwsimError
        The checkpoint is missing or damaged.
    """
    from safetensors.numpy import load

    stored = load(read_asset(NETWORKS[name].checkpoint, folder))
    return {key: value.astype(np.float32) for key, value in stored.items()}


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


def build_model(pretrained: bool = True, name: str = EMBEDDED) -> nn.Module:
    """An embedded network as timm's class, in evaluation mode.

    Parameters
    ----------
    pretrained : bool
        Load the shipped weights; otherwise the weights are timm's random initialisation, drawn from PyTorch's
        global generator.
    name : str
        A key of `NETWORKS`.

    Raises
    ------
    HwsimError
        The shipped checkpoint is missing or damaged.
    """
    import torch

    network = NETWORKS[name]
    model: nn.Module
    if network.family == "swin":
        from timm.models.swin_transformer import SwinTransformer

        model = SwinTransformer(**network.architecture)
    else:
        from timm.models.vision_transformer import VisionTransformer

        model = VisionTransformer(**network.architecture)
    if pretrained:
        model.load_state_dict({key: torch.from_numpy(value) for key, value in load_weights(name=name).items()})
    return model.eval()
