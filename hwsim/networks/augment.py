"""Augmentation of image batches in torch, on the device that holds them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shift_and_flip(images: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Random translation and horizontal flip of each image.

    Parameters
    ----------
    images : Tensor of uint8 [B, H, W] or [B, H, W, C]
    shift : int
        Largest translation in pixels, the same for rows and columns; edges are filled with zeros.
    flip : bool
        Flip half of the images.
    generator : torch.Generator
        Of the device of `images`.
    """
    count, (height, width) = len(images), images.shape[1:3]
    device = images.device
    offsets = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=generator, device=device)
    rows, columns = (
        torch.arange(size, device=device) + move for size, move in zip((height, width), offsets, strict=True)
    )
    if flip:
        chosen = torch.rand((count, 1), generator=generator, device=device) < 0.5
        columns = torch.where(chosen, columns.flip(1), columns)
    padded = F.pad(images, (0, 0) * (images.ndim - 3) + (shift,) * 4)
    which = torch.arange(count, device=device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]]


def erased(count: int, size: int, probability: float, generator: torch.Generator) -> Tensor:
    """Which pixels a random rectangle of 4 to 14 pixels a side erases, bool [B, size, size].

    Parameters
    ----------
    count, size : int
        Images, and pixels a side.
    probability : float
        Of an image to have a rectangle.
    generator : torch.Generator
        Its device is that of the result.
    """
    device = generator.device
    extent = 4 + 10 * torch.rand((2, count, 1), generator=generator, device=device)
    start = torch.rand((2, count, 1), generator=generator, device=device) * size - extent / 2
    position = torch.arange(size, device=device)
    rows, columns = (position >= start) & (position < start + extent)
    chosen = torch.rand((count, 1), generator=generator, device=device) < probability
    return (rows & chosen)[:, :, None] & columns[:, None, :]
