"""A batch recorded once as a CUDA graph and replayed, uploads and downloads beside it.

The pixels of the next batches are copied to page-locked memory and uploaded while the GPU works on this one; only
logits come back.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from hwsim.execute.parallel import batches

# Batches under way at the same time.
_SLOTS = 3
# Threads that copy a batch to page-locked memory: one alone would be slower than the GPU.
_COPIERS = 4


@dataclass
class _Slot:
    """One batch under way: its pixels on both sides, its logits, and when each is there."""

    pixels: torch.Tensor
    uploaded_pixels: torch.Tensor
    logits: torch.Tensor
    uploaded: torch.cuda.Event
    done: torch.cuda.Event
    images: slice | None = None


class Replay:
    """The graph of a batch of one size.

    Parameters
    ----------
    forward : callable
        From uint8 pixels ``[size, H, W, C]`` on the device to kept logits ``[size, classes]``.
    size : int
    image_size : tuple of int
    device : torch.device
    """

    def __init__(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        size: int,
        image_size: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        self.size, self.device = size, device
        self.pixels = torch.zeros((size, *image_size), dtype=torch.uint8, device=device)
        self.compute, self.copy = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self.compute.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self.compute):
            # Kernels compile and load here, which a graph could not record.
            forward(self.pixels)
        self.compute.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.compute):
            self.logits = forward(self.pixels)
        self.slots = [self._slot() for _ in range(_SLOTS)]

    def _slot(self) -> _Slot:
        shape, logits = self.pixels.shape, self.logits
        return _Slot(
            pixels=torch.empty(shape, dtype=torch.uint8, pin_memory=True),
            uploaded_pixels=torch.empty_like(self.pixels),
            logits=torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True),
            uploaded=torch.cuda.Event(),
            done=torch.cuda.Event(),
        )

    def predict(
        self, images: np.ndarray, take: Callable[[slice, torch.Tensor], None], progress: Callable[[int], None] | None
    ) -> None:
        """Run all images; `take` is given the logits of each part, in order, valid during the call only."""

        def finish(slot: _Slot) -> None:
            if slot.images is None:
                return
            slot.done.synchronize()
            count = slot.images.stop - slot.images.start
            take(slot.images, slot.logits[:count])
            slot.images = None
            if progress is not None:
                progress(count)

        try:
            with ThreadPoolExecutor(_COPIERS) as pool:
                for number, part in enumerate(batches(len(images), self.size)):
                    slot = self.slots[number % _SLOTS]
                    finish(slot)
                    self._start(slot, images, part, pool)
                    slot.images = part
                for offset in range(_SLOTS):
                    finish(self.slots[(number + 1 + offset) % _SLOTS])
        finally:
            for slot in self.slots:
                slot.images = None
            self.compute.synchronize()

    def _start(self, slot: _Slot, images: np.ndarray, part: slice, pool: ThreadPoolExecutor) -> None:
        room = slot.pixels.numpy()

        def fill(piece: slice) -> None:
            np.copyto(room[piece], images[part.start + piece.start : part.start + piece.stop])

        count = part.stop - part.start
        list(pool.map(fill, batches(count, -(-count // _COPIERS))))
        with torch.cuda.stream(self.copy):
            slot.uploaded_pixels.copy_(slot.pixels, non_blocking=True)
            slot.uploaded.record()
        with torch.cuda.stream(self.compute):
            self.compute.wait_event(slot.uploaded)
            self.pixels.copy_(slot.uploaded_pixels)
            self.graph.replay()
            slot.logits.copy_(self.logits, non_blocking=True)
            slot.done.record()
