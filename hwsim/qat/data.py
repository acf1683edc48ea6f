"""Training batches that the seed, the epoch and the step decide, and nothing else.

No generator lives from one step to the next: the order of an epoch comes from (seed, epoch), the augmentation of a
group of steps from (seed, epoch, group), that of an image of a folder from (seed, epoch, image). A run that goes on
from a checkpoint therefore sees the very batches that it would have seen, and so does each of several processes. The
order is drawn on the CPU and is the same everywhere; arrays are augmented by random numbers of the device, whose kind
then belongs to the run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from golden.errors import HwsimError
from hwsim.data import ImageSet, ImageSource, find_images, load_images
from hwsim.networks.augment import erased, shift_and_flip
from hwsim.networks.embedded import NETWORKS
from hwsim.networks.fashion_mnist import read_fashion_mnist
from hwsim.networks.graph import FloatGraph
from hwsim.networks.interpret import normalised_pixels
from hwsim.qat.settings import Augmentation

# Images that are augmented at once: few kernels a step, and little memory.
AUGMENTED_AT_ONCE = 8192
# What the random numbers of a seed are for. First, as a sequence of numbers may end in zeros that say nothing.
ORDER, CHANGE = 1, 2


@dataclass(frozen=True)
class Part:
    """Which images of every batch a process takes: those at ``index``, of ``count`` equal shares."""

    index: int = 0
    count: int = 1


WHOLE = Part()


class Batches(Protocol):
    """Training images in batches.

    Attributes
    ----------
    steps : int
        Batches an epoch; what does not fill the last one is left out.
    images : int
    fingerprint : str
        Tells two data sets apart.
    augmentation_device : str
        Kind of device whose random numbers change the images: "cpu" where nothing is drawn on another one.
    """

    steps: int
    images: int
    fingerprint: str
    augmentation_device: str

    def epoch(self, number: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images float32 [B, H, W, C] and labels int64 [B], from a step of an epoch on."""
        ...


def seeded(*numbers: int) -> int:
    """A seed for torch from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def check_batch(images: int, batch: int, part: Part) -> int:
    """Steps an epoch.

    Raises
    ------
    HwsimError
        A batch larger than the set, or one that the processes cannot share.
    """
    if batch > images:
        raise HwsimError(f"training: a batch of {batch} is larger than the {images} training images; lower --batch")
    if batch % part.count or batch // part.count < 2:
        raise HwsimError(
            f"training: a batch of {batch} does not give each of {part.count} processes the same number of images, 2 "
            "or more; change --batch"
        )
    return images // batch


class ArrayBatches:
    """Images that lie on the device as one tensor.

    Parameters
    ----------
    graph : FloatGraph
        Its size and normalisation.
    images : ImageSet
        With labels.
    batch : int
        Images a step, of all processes.
    augmentation : Augmentation
    seed : int
    device : torch.device
        The augmentation takes random numbers of its kind: a CPU and a GPU see different ones, in the same order.
    part : Part

    Raises
    ------
    HwsimError
        See `check_batch`; an augmentation by crops.
    """

    def __init__(
        self,
        graph: FloatGraph,
        images: ImageSet,
        batch: int,
        augmentation: Augmentation,
        seed: int,
        device: torch.device,
        part: Part = WHOLE,
    ) -> None:
        if augmentation.crop:
            raise HwsimError("training: crop is for images of a folder; these are arrays of the network's size already")
        if images.labels is None:
            raise HwsimError("training: the training images have no labels")
        self.images, self.batch, self.augmentation = len(images.images), batch, augmentation
        self.seed, self.device, self.part = seed, device, part
        self.steps = check_batch(self.images, batch, part)
        self._images = torch.tensor(np.ascontiguousarray(images.images), device=device)
        self._labels = torch.tensor(images.labels, dtype=torch.int64, device=device)
        self._pixels = torch.from_numpy(normalised_pixels(graph)).to(device)
        self.fingerprint = fingerprint(images.images, images.labels)
        self.augmentation_device = "cpu" if augmentation == Augmentation() else device.type

    def _augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        change = self.augmentation
        if change.shift or change.flip:
            images = shift_and_flip(images, change.shift, change.flip, generator)
        channel = torch.arange(images.shape[-1], device=self.device)
        x = self._pixels[channel, images.int()]
        if change.erase:
            height, width = images.shape[1:3]
            mask = erased(len(images), max(height, width), change.erase, generator)[:, :height, :width, None]
            x = x.masked_fill(mask, 0.0)
        return x

    def epoch(self, number: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Batches`."""
        generator = torch.Generator(self.augmentation_device)
        shuffle = torch.Generator().manual_seed(seeded(ORDER, self.seed, number))
        order = torch.randperm(self.images, generator=shuffle).to(self.device)
        group = max(1, AUGMENTED_AT_ONCE // self.batch)
        share = self.batch // self.part.count
        for first in range(start - start % group, self.steps, group):
            last = min(first + group, self.steps)
            generator.manual_seed(seeded(CHANGE, self.seed, number, first))
            chosen = order[first * self.batch : last * self.batch]
            x, labels = self._augmented(self._images[chosen], generator), self._labels[chosen]
            for step in range(max(first, start), last):
                begin = (step - first) * self.batch + self.part.index * share
                yield x[begin : begin + share], labels[begin : begin + share]


class FolderBatches:
    """Images that are read, cropped and flipped by workers while the device trains.

    Parameters
    ----------
    graph : FloatGraph
    source : ImageSource
        With labels.
    batch, augmentation, seed, device, part
        As of `ArrayBatches`; shift and erase are not for folders.
    workers : int
        Processes that read; 0 reads in this one.

    Raises
    ------
    HwsimError
        See `check_batch`; no labels; an augmentation that is not for folders.
    """

    def __init__(
        self,
        graph: FloatGraph,
        source: ImageSource,
        batch: int,
        augmentation: Augmentation,
        seed: int,
        device: torch.device,
        part: Part = WHOLE,
        workers: int = 4,
    ) -> None:
        labels = source.labels(graph.classes)
        if labels is None:
            raise HwsimError(f"{source.path}: no class folders; training needs labels, put the images into folders")
        if augmentation.shift or augmentation.erase:
            raise HwsimError("training: shift and erase are for image arrays; folders take crop=AREA and flip")
        self.images, self.batch, self.seed, self.device, self.part = source.count, batch, seed, device, part
        self.steps = check_batch(self.images, batch, part)
        self.workers = workers
        self._dataset = _FolderImages(source, labels, graph.image_size, graph.crop_ratio, augmentation, seed)
        self._pixels = torch.from_numpy(normalised_pixels(graph)).to(device)
        self.fingerprint = folder_fingerprint(source, labels)
        self.augmentation_device = "cpu"  # where the workers are

    def epoch(self, number: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Batches`."""
        from torch.utils.data import DataLoader

        order = np.random.default_rng(seeded(ORDER, self.seed, number)).permutation(self.images)
        share = self.batch // self.part.count
        begins = [step * self.batch + self.part.index * share for step in range(start, self.steps)]
        self._dataset.epoch = number
        loader: Any = DataLoader(
            self._dataset,  # type: ignore[arg-type]
            batch_sampler=[order[begin : begin + share].tolist() for begin in begins],
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            # An open source of images cannot be sent to a fresh process.
            multiprocessing_context="fork" if self.workers else None,
        )
        channel = torch.arange(self._pixels.shape[0], device=self.device)
        for images, labels in loader:
            pixels = images.to(self.device, non_blocking=True).int()
            yield self._pixels[channel, pixels], labels.to(self.device, non_blocking=True)


class _FolderImages:
    """A map-style data set for torch's DataLoader: uint8 image [H, W, C] and label of an index."""

    def __init__(
        self,
        source: ImageSource,
        labels: np.ndarray,
        image_size: tuple[int, int, int],
        crop_ratio: float,
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        self.source, self.labels, self.image_size = source, labels, image_size
        self.crop_ratio, self.augmentation, self.seed = crop_ratio, augmentation, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from torchvision.transforms import InterpolationMode, RandomResizedCrop
        from torchvision.transforms import functional as transform

        height, width, channels = self.image_size
        image: Any = self.source.open_image(index, "L" if channels == 1 else "RGB")
        # torchvision draws from torch's global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(CHANGE, self.seed, self.epoch, index))
            if self.augmentation.crop:
                image = RandomResizedCrop(
                    (height, width), (self.augmentation.crop, 1.0), interpolation=InterpolationMode.BICUBIC
                )(image)
            else:
                image = transform.resize(image, round(min(height, width) / self.crop_ratio), InterpolationMode.BICUBIC)
                image = transform.center_crop(image, [height, width])
            if self.augmentation.flip and torch.rand(()) < 0.5:
                image = transform.hflip(image)
        pixels = np.asarray(image).reshape(height, width, channels)
        return torch.from_numpy(pixels.copy()), int(self.labels[index])


def fingerprint(*arrays: np.ndarray) -> str:
    """Tells arrays apart by what is in them."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def folder_fingerprint(source: ImageSource, labels: np.ndarray) -> str:
    """Tells folders of images apart without reading them all: by labels, names below the folder and sizes in bytes."""
    digest = hashlib.sha256(fingerprint(labels).encode())
    for path in source.files:
        digest.update(f"\0{path.relative_to(source.path).as_posix()}\0{path.stat().st_size}".encode())
    return digest.hexdigest()[:16]


class TrainingData(NamedTuple):
    """Images of a network in memory, or a folder that is read while training."""

    arrays: ImageSet | None
    source: ImageSource | None

    def fingerprint(self, classes: int) -> str:
        """That of its batches, for a network of so many classes."""
        if self.arrays is not None:
            assert self.arrays.labels is not None
            return fingerprint(self.arrays.images, self.arrays.labels)
        assert self.source is not None
        labels = self.source.labels(classes)
        assert labels is not None
        return folder_fingerprint(self.source, labels)

    def batches(
        self,
        graph: FloatGraph,
        batch: int,
        augmentation: Augmentation,
        seed: int,
        device: torch.device,
        part: Part = WHOLE,
        workers: int = 4,
    ) -> Batches:
        """The batches of this data; arguments as of `ArrayBatches` and `FolderBatches`."""
        if self.arrays is not None:
            return ArrayBatches(graph, self.arrays, batch, augmentation, seed, device, part)
        assert self.source is not None
        return FolderBatches(graph, self.source, batch, augmentation, seed, device, part, workers)


def training_data(graph: FloatGraph, path: Path | None, limit: int | None = None) -> TrainingData:
    """Training images of a network.

    Parameters
    ----------
    graph : FloatGraph
    path : Path, optional
        What `hwsim.data.find_images` reads. By default the 60 000 training images of Fashion-MNIST, for the embedded
        networks. Folders of images stay on disk, arrays are brought to the network's size in memory.
    limit : int, optional
        At most so many images, evenly spread.

    Raises
    ------
    HwsimError
        No such data, or data without labels.
    """
    if path is None:
        if graph.name not in NETWORKS:
            raise HwsimError(f"{graph.name}: give training images with --data FOLDER")
        found = read_fashion_mnist()
        images = ImageSet(found.train_images[..., np.newaxis], found.train_labels)
        if limit is not None and limit < len(images.images):
            chosen = np.arange(limit) * len(images.images) // limit
            images = ImageSet(images.images[chosen], found.train_labels[chosen])
        return TrainingData(images, None)
    source = find_images(path, part="train", limit=limit)
    if not source.ready:
        return TrainingData(None, source)
    labels = source.labels(graph.classes)
    if labels is None:
        raise HwsimError(f"{path}: no labels; training needs them, add an array of labels")
    if source.pixels is not None and source.pixels.shape[1:] == graph.image_size:
        return TrainingData(ImageSet(source.pixels, labels), None)
    arrays = load_images(source, graph.image_size, crop_ratio=graph.crop_ratio, classes=graph.classes)
    return TrainingData(arrays, None)
