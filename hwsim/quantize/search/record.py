"""What the search needs of each layer: its operands, its output, and the gradient of a loss at that output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from golden.errors import HwsimError
from hwsim.execute.parallel import batches
from hwsim.networks.graph import FloatGraph, FloatNode
from hwsim.networks.interpret import Interpreter

GRADIENT_BATCH = 4  # images, as released
# Bytes of recorded tensors at once.
BYTES_AT_ONCE = {"cpu": 1 << 30}
BYTES_ON_ACCELERATOR = 1 << 34

# (logits of a batch, its images) -> loss
Loss = Callable[[Tensor, slice], Tensor]


@dataclass
class Record:
    """Operands, output and gradient of one matrix product, the image on the first axis."""

    operands: list[Tensor]
    output: Tensor
    gradient: Tensor | None


def drawn_class_loss(logits: np.ndarray, seed: int) -> Loss:
    """Minus the log-probability of classes that are drawn from the float network's own predictions.

    At the float network, the Hessian of the Kullback-Leibler divergence from its predictions, by any of its
    outputs, is the Fisher information: the mean of the outer product of this loss's gradient over the classes
    with their predicted probabilities (Martens, "New insights and perspectives on the natural gradient method",
    JMLR 2020, section 5). Its diagonal is the mean of the squared gradient. The gradient of the divergence
    itself, which the released code takes there, is zero but for rounding.

    Parameters
    ----------
    logits : ndarray of float32 [N, classes]
        Of the float network.
    seed : int
    """
    exponential = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    cumulative = np.cumsum(exponential, axis=1)
    drawn = np.random.default_rng(seed).random(len(logits)) * cumulative[:, -1]
    classes = torch.from_numpy((cumulative <= drawn[:, None]).sum(axis=1))

    def loss(found: Tensor, part: slice) -> Tensor:
        return functional.cross_entropy(found, classes[part].to(found.device), reduction="sum")

    return loss


def divergence_loss(logits: np.ndarray) -> Loss:
    """Kullback-Leibler divergence from the float network's predictions to those of the network that runs.

    Parameters
    ----------
    logits : ndarray of float32 [N, classes]
        Of the float network.
    """
    target = torch.from_numpy(logits).softmax(dim=-1)

    def loss(found: Tensor, part: slice) -> Tensor:
        expected = target[part].to(found.device)
        return functional.kl_div(found.log_softmax(dim=-1), expected, reduction="batchmean")

    return loss


def record(
    interpreter: Interpreter,
    images: np.ndarray,
    nodes: Sequence[FloatNode],
    loss: Loss | None,
    *,
    quantize: Callable[[FloatNode, Tensor], Tensor] = lambda node, value: value,
    parameters: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> dict[str, Record]:
    """Run the network on all images and keep what `nodes` see.

    Parameters
    ----------
    interpreter : Interpreter
    images : ndarray of uint8 [N, H, W, C]
    nodes : sequence of FloatNode
    loss : callable or None
        None records no gradients.
    quantize : callable, optional
        What goes on instead of a node's value.
    parameters : mapping, optional
        Quantized weights.

    Raises
    ------
    HwsimError
        A gradient is not finite.
    """
    graph = interpreter.graph
    outputs = [node.name for node in nodes]
    needed = {name for node in nodes for name in (node.name, *node.inputs)}
    kept: dict[str, list[Tensor]] = {name: [] for name in needed}
    gradients: dict[str, list[Tensor]] = {name: [] for name in outputs}
    for part in batches(len(images), GRADIENT_BATCH):
        seen: dict[str, Tensor] = {}

        def after(node: FloatNode, value: Tensor, seen: dict[str, Tensor] = seen) -> Tensor:
            if node.name in needed:
                if loss is not None and node.name in outputs and not value.requires_grad:
                    value = value.detach().requires_grad_()
                seen[node.name] = value
            return quantize(node, value)

        with torch.set_grad_enabled(loss is not None):
            logits = interpreter.forward(images[part], after=after, parameters=parameters)
        for name, value in seen.items():
            kept[name].append(value.detach())
        if loss is not None:
            found = torch.autograd.grad(loss(logits, part), [seen[name] for name in outputs])
            for name, gradient in zip(outputs, found, strict=True):
                _check_gradient(graph, name, gradient)
                gradients[name].append(gradient)
    values = {name: torch.cat(parts) for name, parts in kept.items()}
    return {
        node.name: Record(
            [values[name] for name in node.inputs],
            values[node.name],
            torch.cat(gradients[node.name]) if loss is not None else None,
        )
        for node in nodes
    }


def _check_gradient(graph: FloatGraph, name: str, gradient: Tensor) -> None:
    if not torch.isfinite(gradient).all():
        raise HwsimError(
            f"{graph.name}: the gradient at the output of {name} is not finite, so it cannot weigh errors; "
            "check the checkpoint, or search with the metric mse"
        )


def passes(graph: FloatGraph, nodes: Sequence[FloatNode], images: int, device: torch.device) -> list[list[FloatNode]]:
    """The nodes in groups whose records fit into memory together."""
    limit = BYTES_AT_ONCE.get(device.type, BYTES_ON_ACCELERATOR)
    result: list[list[FloatNode]] = []
    used = 0
    for node in nodes:
        values = sum(math.prod(graph.shapes[name]) for name in (node.name, node.name, *node.inputs))
        size = 4 * images * values
        if not result or used + size > limit:
            result.append([])
            used = 0
        result[-1].append(node)
        used += size
    return result
