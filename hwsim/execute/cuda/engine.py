"""Programs on a GPU: see `hwsim.execute.cuda`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from hwsim.execute.cuda import carriers
from hwsim.execute.cuda.failures import explained
from hwsim.execute.cuda.plan import Planner, Step
from hwsim.execute.cuda.replay import Replay
from hwsim.execute.parallel import batches
from hwsim.program import INPUT, Node, Program

# The largest activation of all images of a batch, and the most images: more make no kernel faster.
_BATCH_BYTES = 64 << 20
_LARGEST_BATCH = 1024
# Recorded batch sizes that are kept.
_REPLAYS = 4


class CudaMachine:
    """A program on one device: the counterpart of `hwsim.execute.processor.Processor`.

    Parameters
    ----------
    program : Program
    device : torch.device
        A CUDA device; "cpu" where Triton interprets its kernels (``TRITON_INTERPRET=1``), which serves tests.
    """

    def __init__(self, program: Program, device: torch.device) -> None:
        self.program, self.device = program, device
        with self._current():
            self._planner = Planner(program, device)
            self._steps = self._planner.plan(())
        self._replays: dict[int, Replay] = {}

    @contextmanager
    def _current(self, images: int | None = None) -> Iterator[None]:
        """Where to launch and allocate; failures are explained, by the size of a batch where one runs."""
        # Triton launches on the current device.
        here = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with explained(self.device, images), here:
            yield

    @property
    def kernels(self) -> list[tuple[Node, Callable[..., np.ndarray]]]:
        """Every node with its unit as a function of NumPy codes, uploaded and downloaded around it."""
        return [(node, self._numpy_kernel(node)) for node in self.program.nodes]

    def _numpy_kernel(self, node: Node) -> Callable[..., np.ndarray]:
        # Whoever calls it alone, such as an audit, may give it codes that never come inside the program.
        operation = self._planner.operation(node, alone=True)

        def kernel(*inputs: np.ndarray) -> np.ndarray:
            with self._current():
                operands = [
                    carriers.encode(codes, form.bits, self.device)
                    for codes, form in zip(inputs, node.spec.inputs, strict=True)
                ]
                return carriers.decode(operation(*operands), node.spec.output)

        return kernel

    def run(self, images: np.ndarray, keep: Collection[str] | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See `hwsim.execute.Executor.run`."""
        with self._current(len(images)):
            steps = self._planner.plan(keep) if keep is None or len(keep) else self._steps
            pixels = torch.from_numpy(images.copy()).to(self.device)
            kept: dict[str, torch.Tensor] = {}
            output = self._forward(pixels, steps, kept, keep)
            found = {
                name: np.broadcast_to(
                    carriers.decode(tensor, self.program[name].spec.output), (len(images), *tensor.shape[1:])
                )
                for name, tensor in kept.items()
            }
            logits = carriers.decode(output, self.program.nodes[-1].spec.output)
        return logits.reshape(len(images), -1), found

    def _forward(
        self,
        pixels: torch.Tensor,
        steps: list[Step],
        kept: dict[str, torch.Tensor] | None = None,
        keep: Collection[str] | None = (),
    ) -> torch.Tensor:
        """What is kept of the last node."""
        values = {INPUT: carriers.encode_pixels(pixels)}
        for step in steps:
            values[step.name] = step.operation(*(values[name] for name in step.inputs))
            if kept is not None and (keep is None or step.name in keep):
                kept[step.name] = values[step.name]
            for name in step.dropped:
                del values[name]
        # Nothing takes the last node, so it is still there; a table that joined an earlier step does not make the last.
        return values[self.program.nodes[-1].name]

    def default_batch(self) -> int:
        """Images a batch where the caller does not say: a power of two."""
        largest = max(
            math.prod(self.program.shape(node.name)) * carriers.dtype_of(node.spec.output.bits).itemsize
            for node in self.program.nodes
        )
        fitting = max(1, _BATCH_BYTES // largest)
        return int(min(_LARGEST_BATCH, 1 << (fitting.bit_length() - 1)))

    def batch_size(self, images: int, batch: int | None) -> int:
        """Images of the recorded batch that runs so many images: few sizes, so that few are recorded."""
        return min(self.default_batch() if batch is None else batch, 1 << (images - 1).bit_length())

    def predict(self, images: np.ndarray, batch: int | None, progress: Callable[[int], None] | None) -> np.ndarray:
        """See `hwsim.execute.Executor.predict`."""
        form = self.program.nodes[-1].spec.output
        logits = np.empty((len(images), math.prod(self.program.shape(self.program.nodes[-1].name))), form.dtype)
        size = self.batch_size(len(images), batch)
        if self.device.type != "cuda":
            for part in batches(len(images), size):
                logits[part] = self.run(images[part], ())[0]
                if progress is not None:
                    progress(part.stop - part.start)
            return logits

        def take(part: slice, kept: torch.Tensor) -> None:
            logits[part] = carriers.decode(kept, form)

        with self._current(size):
            self.recorded(size).predict(images, take, progress)
        return logits

    def prepare(self, images: int, batch: int | None) -> None:
        """See `hwsim.execute.Executor.prepare`."""
        size = self.batch_size(images, batch)
        if self.device.type == "cuda":
            with self._current(size):
                self.recorded(size)

    def recorded(self, size: int) -> Replay:
        """The graph of a batch size, recorded when it is not there yet."""
        if size not in self._replays:
            while len(self._replays) >= _REPLAYS:
                del self._replays[next(iter(self._replays))]

            def forward(pixels: torch.Tensor) -> torch.Tensor:
                return self._forward(pixels, self._steps).reshape(size, -1)

            self._replays[size] = Replay(forward, size, self.program.image_size, self.device)
        return self._replays[size]
