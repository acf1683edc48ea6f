"""Programs on the processor: one kernel a node, on NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import numpy as np

from golden.spec import Spec
from hwsim.execute.parallel import even_size, map_batches
from hwsim.program import INPUT, Node, Program

Kernel = Callable[..., np.ndarray]

# The largest output of a unit, of all images of a pass: with its input it stays in a core's cache.
_PASS_BYTES = 5 << 18
# Images a batch where the caller does not say.
_BATCH = 64


class Processor:
    """A program made ready to run with kernels for NumPy arrays.

    Parameters
    ----------
    program : Program
    kernel_of : callable
        Makes the kernel of a node.
    """

    def __init__(self, program: Program, kernel_of: Callable[[Node], Kernel]) -> None:
        self.program = program
        self.kernels = [(node, kernel_of(node)) for node in program.nodes]
        uses = [name for node in program.nodes for name in node.inputs]
        self._last_use = {
            name: max(i for i, node in enumerate(program.nodes) if name in node.inputs) for name in set(uses)
        }

    def run(self, images: np.ndarray, keep: Collection[str] | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See `hwsim.execute.Executor.run`."""
        values: dict[str, np.ndarray] = {INPUT: images}
        kept: dict[str, np.ndarray] = {}
        output = images
        for index, (node, kernel) in enumerate(self.kernels):
            output = kernel(*(values[name] for name in node.inputs))
            values[node.name] = output
            if keep is None or node.name in keep:
                kept[node.name] = np.broadcast_to(output, (len(images), *output.shape[1:]))
            for name in node.inputs:
                if self._last_use[name] == index:
                    values.pop(name, None)
        return output.reshape(len(images), -1), kept

    @property
    def images_a_pass(self) -> int:
        """Images that a core runs at a time, so that activations stay in its cache."""
        largest = max(
            math.prod(self.program.shape(node.name)) * node.spec.output.dtype.itemsize for node in self.program.nodes
        )
        return max(1, _PASS_BYTES // largest)

    def predict(self, images: np.ndarray, batch: int | None, progress: Callable[[int], None] | None) -> np.ndarray:
        """See `hwsim.execute.Executor.predict`."""
        size = min(_BATCH if batch is None else batch, even_size(len(images), self.images_a_pass))
        parts = map_batches(lambda part: self.run(images[part], ())[0], len(images), size, progress)
        return np.concatenate(parts)

    def prepare(self, images: int, batch: int | None) -> None:
        """Compile the kernels by running one empty image."""
        self.run(np.zeros((1, *self.program.image_size), np.uint8), ())


def reference_kernel(node: Node) -> Kernel:
    """The reference itself."""
    return lambda *inputs: node.spec.compute(node.constants, *inputs)


def compiled_kernels() -> Callable[[Node], Kernel]:
    """What makes compiled kernels; numba loads when this is called."""
    from hwsim.execute import numba_kernels, product_kernels, softmax_kernels, window_kernels

    kernels: dict[str, Callable[[Spec, Mapping[str, np.ndarray]], Kernel]] = {
        **numba_kernels.KERNELS,
        **softmax_kernels.KERNELS,
        **product_kernels.KERNELS,
        **window_kernels.KERNELS,
    }

    def kernel_of(node: Node) -> Kernel:
        # Units in none of them move data; the reference does that without a copy.
        factory = kernels.get(node.spec.kind)
        return reference_kernel(node) if factory is None else factory(node.spec, node.constants)

    return kernel_of
