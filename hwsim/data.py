"""Image folders as uint8 arrays, with class indices from the folder names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from golden.errors import HwsimError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_WNID = re.compile(r"n\d{8}")


class ImageSet(NamedTuple):
    """Images of one network's size.

    Attributes
    ----------
    images : ndarray of uint8 [N, H, W, C]
        Pixel values 0..255, channels last.
    labels : ndarray of int [N] or None
        Class indices, where the source has them.
    """

    images: np.ndarray
    labels: np.ndarray | None

    def head(self, count: int | None) -> ImageSet:
        """The first `count` images (all for None)."""
        return ImageSet(self.images[:count], None if self.labels is None else self.labels[:count])


def normalise(pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Network input of pixels: ``(p / 255 - mean) / std``, every operation rounded to float32.

    Parameters
    ----------
    pixels : ndarray of uint8 [..., C]
    mean, std : tuple of float
        One value a channel.

    Returns
    -------
    ndarray of float32 [..., C]
    """
    scaled = pixels.astype(np.float32) / np.float32(255)
    return (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def imagenet_index() -> dict[str, int]:
    """Class index of each ImageNet-1k wnid: its position in the sorted list that timm ships."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return {wnid: index for index, wnid in enumerate(info.label_names())}


def _class_indices(folder: Path, names: list[str], classes: int) -> dict[str, int]:
    if all(_WNID.fullmatch(name) for name in names):
        index = imagenet_index()
        unknown = [name for name in names if name not in index]
        if unknown:
            raise HwsimError(
                f"{folder / unknown[0]}: {unknown[0]} is not an ImageNet-1k wnid; rename or remove the folder"
            )
        return {name: index[name] for name in names}
    if all(name.isdecimal() for name in names):
        large = [name for name in names if int(name) >= classes]
        if large:
            raise HwsimError(f"{folder / large[0]}: class {large[0]} is past the network's {classes} classes")
        return {name: int(name) for name in names}
    if len(names) != classes:
        raise HwsimError(
            f"{folder}: {len(names)} class folders for a network of {classes} classes; "
            "name them by wnid or class number, or give one for every class"
        )
    return {name: index for index, name in enumerate(names)}


def load_image(path: Path, image_size: tuple[int, int, int], crop_ratio: float) -> np.ndarray:
    """One image resized (bicubic, short side ``size / crop_ratio``) and centre cropped.

    Returns
    -------
    ndarray of uint8 [H, W, C]

    Raises
    ------
    HwsimError
        The file is not a readable image.
    """
    from PIL import Image, UnidentifiedImageError

    height, width, channels = image_size
    try:
        with Image.open(path) as file:
            image = file.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise HwsimError(f"{path}: not a readable image ({error}); remove or replace it") from None
    short = int(min(height, width) / crop_ratio)
    if min(image.size) != short:
        across, down = image.size
        size = (short, int(short * down / across)) if across <= down else (int(short * across / down), short)
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    return pixels.reshape(height, width, channels)


def load_folder(
    folder: Path,
    image_size: tuple[int, int, int],
    *,
    crop_ratio: float = 1.0,
    classes: int | None = None,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> ImageSet:
    """Read ``folder/class/image`` (with labels) or ``folder/image`` (without).

    Parameters
    ----------
    folder : Path
        Class folders are ImageNet wnids (all or some), class numbers, or one name for each class in
        sorted order.
    image_size : tuple of int
        Height, width, channels.
    crop_ratio : float
        See `load_image`.
    classes : int, optional
        Classes of the network; without it the folders give no labels.
    limit : int, optional
        At most this many images, evenly spread over the sorted list.
    progress : callable, optional
        Called with 1 after each image.

    Raises
    ------
    HwsimError
        The folder is missing or holds no image, an image cannot be read, or a class folder is unknown.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise HwsimError(f"{folder}: there is no such image folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise HwsimError(f"{folder}: no images in it ({', '.join(sorted(SUFFIXES))}); give a folder of images")
    if limit is not None and limit < len(paths):
        paths = [paths[index * len(paths) // limit] for index in range(limit)]
    names = sorted({path.parent.relative_to(folder).parts[0] for path in paths if path.parent != folder})
    labels = None
    if classes is not None and names:
        indices = _class_indices(folder, names, classes)
        loose = [path for path in paths if path.parent == folder]
        if loose:
            raise HwsimError(f"{loose[0]}: an image beside class folders; put it into one")
        labels = np.array([indices[path.parent.relative_to(folder).parts[0]] for path in paths], dtype=np.int64)
    images = np.empty((len(paths), *image_size), np.uint8)
    for index, path in enumerate(paths):
        images[index] = load_image(path, image_size, crop_ratio)
        if progress is not None:
            progress(1)
    return ImageSet(images, labels)
