"""Image sets as uint8 arrays of a network's size: class folders, IDX, CIFAR and ``.npz`` alike."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from golden.errors import HwsimError
from hwsim.image_arrays import ImageArrays, find_arrays

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_WNID = re.compile(r"n\d{8}")
IMAGENET_CLASSES = 1000
# Larger sets live in a temporary file that the system maps, so that memory does not bound them.
_LARGEST_IN_MEMORY = 1 << 30


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
    wnids = [name for name in names if _WNID.fullmatch(name)]
    if wnids and len(wnids) < len(names):
        other = next(name for name in names if name not in wnids)
        raise HwsimError(
            f"{folder}: {wnids[0]} is a wnid and {other} is not; name all class folders alike, or remove {other}"
        )
    if wnids:
        if classes != IMAGENET_CLASSES:
            raise HwsimError(
                f"{folder}: its class folders are ImageNet-1k wnids, and the network has {classes} classes; "
                "name them by class number"
            )
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


@dataclass(frozen=True)
class ImageSource:
    """Images that were found and not read yet.

    Attributes
    ----------
    path : Path
        What the user named.
    count : int
    open_image : callable
        The image of an index, decoded, in PIL's mode "L" or "RGB" as the second argument says.
    labels : callable
        Class indices for a network of so many classes, or None.
    ready : bool
        Images that have the size of the network are taken as they are.
    pixels : ndarray of uint8 [N, H, W, C], optional
        All images at once, of a set that is in memory.
    files : tuple of Path
        Of a folder of images, one a file.
    """

    path: Path
    count: int
    open_image: Callable[[int, str], Image]
    labels: Callable[[int], np.ndarray | None]
    ready: bool
    pixels: np.ndarray | None = None
    files: tuple[Path, ...] = ()


def find_images(path: Path, *, part: str = "test", limit: int | None = None) -> ImageSource:
    """Look for an image set.

    Parameters
    ----------
    path : Path
        A folder of images, in class folders (``folder/class/image``) or not (``folder/image``, no labels). Class
        folders are ImageNet wnids (all or some, for a network of 1000 classes), class numbers, or one name for each
        class in sorted order.
        Else what `hwsim.image_arrays.find_arrays` reads: IDX files, CIFAR batches, ``.npz``.
    part : {"train", "test"}
        Of a set that holds both.
    limit : int, optional
        At most this many images, evenly spread over the set.

    Raises
    ------
    HwsimError
        The path is missing, holds no images, or a file of arrays is not what it should be.
    """
    path = Path(path)
    if not path.exists():
        raise HwsimError(f"{path}: there is no such image folder or file")
    arrays = find_arrays(path, part)
    if arrays is not None:
        return _array_source(path, arrays, limit)
    if path.is_file():
        raise HwsimError(
            f"{path}: is neither .npz, IDX images nor a CIFAR batch; give such a file or a folder of images"
        )
    return _folder_source(path, limit)


def _spread(count: int, limit: int | None) -> list[int]:
    if limit is None or limit >= count:
        return list(range(count))
    return [index * count // limit for index in range(limit)]


def _array_source(path: Path, arrays: ImageArrays, limit: int | None) -> ImageSource:
    chosen = _spread(len(arrays.images), limit)

    def open_image(index: int, mode: str) -> Image:
        from PIL import Image

        pixels = arrays.images[chosen[index]]
        return Image.fromarray(np.ascontiguousarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)).convert(
            mode
        )

    def labels(classes: int) -> np.ndarray | None:
        if arrays.labels is None:
            return None
        if arrays.labels.max() >= classes:
            raise HwsimError(f"{path}: label {arrays.labels.max()} is past the network's {classes} classes")
        found: np.ndarray = arrays.labels[chosen]
        return found

    pixels = arrays.images if len(chosen) == len(arrays.images) else arrays.images[chosen]
    return ImageSource(path, len(chosen), open_image, labels, ready=True, pixels=pixels)


def _folder_source(folder: Path, limit: int | None) -> ImageSource:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise HwsimError(f"{folder}: no images in it ({', '.join(sorted(SUFFIXES))}); give a folder of images")
    # All of them tell what the classes are, also where few are taken.
    names = sorted({path.parent.relative_to(folder).parts[0] for path in paths if path.parent != folder})
    loose = next((path for path in paths if path.parent == folder), None)
    paths = [paths[index] for index in _spread(len(paths), limit)]

    def open_image(index: int, mode: str) -> Image:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(paths[index]) as file:
                return file.convert(mode)
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise HwsimError(f"{paths[index]}: not a readable image ({error}); remove or replace it") from None

    def labels(classes: int) -> np.ndarray | None:
        if not names:
            return None
        indices = _class_indices(folder, names, classes)
        if loose is not None:
            raise HwsimError(f"{loose}: an image beside class folders; put it into one")
        return np.array([indices[path.parent.relative_to(folder).parts[0]] for path in paths], dtype=np.int64)

    return ImageSource(folder, len(paths), open_image, labels, ready=False, files=tuple(paths))


def _fit(image: Image, height: int, width: int, crop_ratio: float) -> Image:
    """Resize (bicubic, short side ``size / crop_ratio``) and crop the centre."""
    from PIL.Image import Resampling

    short = int(min(height, width) / crop_ratio)
    if min(image.size) != short:
        across, down = image.size
        size = (short, int(short * down / across)) if across <= down else (int(short * across / down), short)
        image = image.resize(size, Resampling.BICUBIC)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def load_images(
    source: ImageSource,
    image_size: tuple[int, int, int],
    *,
    crop_ratio: float = 1.0,
    classes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> ImageSet:
    """Decode, resize and crop on all cores.

    Parameters
    ----------
    source : ImageSource
    image_size : tuple of int
        Height, width, channels.
    crop_ratio : float
        Side of the centre crop over the short side of the resized image.
    classes : int, optional
        Classes of the network; without it there are no labels.
    progress : callable, optional
        Called with 1 after each image, in this thread.

    Raises
    ------
    HwsimError
        An image cannot be read, or a class is unknown.
    """
    height, width, channels = image_size
    mode = "L" if channels == 1 else "RGB"
    labels = None if classes is None else source.labels(classes)
    images = _empty((source.count, *image_size))

    def load(index: int) -> None:
        image = source.open_image(index, mode)
        if not (source.ready and image.size == (width, height)):
            image = _fit(image, height, width, crop_ratio)
        images[index] = np.asarray(image).reshape(height, width, channels)

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for _ in pool.map(load, range(source.count)):
            if progress is not None:
                progress(1)
    finally:
        pool.shutdown(cancel_futures=True)  # what is left after an error
    return ImageSet(images, labels)


def _empty(shape: tuple[int, ...]) -> np.ndarray:
    if np.prod(shape) <= _LARGEST_IN_MEMORY:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:  # the map outlives it
        return np.memmap(file, np.uint8, "w+", shape=shape)
