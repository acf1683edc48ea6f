"""Executors: run integer programs; all give the same bits as the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import numpy as np

from golden.errors import HwsimError
from golden.spec import Spec
from hwsim.execute.parallel import even_size, map_batches
from hwsim.program import INPUT, Node, Program

Kernel = Callable[..., np.ndarray]

# The largest output of a unit, of all images of a pass: with its input it stays in a core's cache.
_PASS_BYTES = 5 << 18


class Executor:
    """A program made ready to run.

    Parameters
    ----------
    program : Program
    backend : {"numba", "reference"}

    Raises
    ------
    HwsimError
        Unknown backend.
    """

    def __init__(self, program: Program, backend: str = "numba") -> None:
        self.program = program
        self.backend = backend
        if backend not in BACKENDS:
            raise HwsimError(f"unknown executor {backend!r}; choose one of {', '.join(BACKENDS)}")
        kernel_of = BACKENDS[backend]()
        self.kernels = [(node, kernel_of(node)) for node in program.nodes]
        uses = [name for node in program.nodes for name in node.inputs]
        self._last_use = {
            name: max(i for i, node in enumerate(program.nodes) if name in node.inputs) for name in set(uses)
        }

    def run(self, images: np.ndarray, keep: Collection[str] | None = ()) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Run one batch of images.

        Parameters
        ----------
        images : ndarray of uint8 [N, H, W, C]
        keep : collection of str or None
            Nodes whose outputs to return; None keeps all.

        Returns
        -------
        logits : ndarray of unsigned codes [N, classes]
        kept : dict of str to ndarray
            Outputs of the kept nodes, batch axis first.
        """
        self.program.check_images(images)
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

    def predict(
        self, images: np.ndarray, *, batch: int = 64, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Logit codes [N, classes] of any number of images, batches on all cores.

        The memory in use does not depend on the number of images.

        Parameters
        ----------
        images : ndarray of uint8 [N, H, W, C]
        batch : int
            Images a batch at most; fewer where the cores then share the work, or the cache holds it.
        progress : callable, optional
            Called with the number of images after each batch.
        """
        if not len(images):
            raise HwsimError("there is no image to run")
        self.program.check_images(images)
        size = min(batch, even_size(len(images), self.images_a_pass))
        parts = map_batches(lambda part: self.run(images[part])[0], len(images), size, progress)
        return np.concatenate(parts)


def _reference_kernel(node: Node) -> Kernel:
    return lambda *inputs: node.spec.compute(node.constants, *inputs)


def _numba_kernels() -> Callable[[Node], Kernel]:
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
        return _reference_kernel(node) if factory is None else factory(node.spec, node.constants)

    return kernel_of


# What makes the kernel of a node, by executor; called when an executor is chosen, so that its libraries load then.
BACKENDS: dict[str, Callable[[], Callable[[Node], Kernel]]] = {
    "numba": _numba_kernels,
    "reference": lambda: _reference_kernel,
}


def top1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy in percent; of equal logits the lowest class counts."""
    return float((logits.argmax(axis=1) == labels).mean() * 100)
