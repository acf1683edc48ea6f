"""Run a float graph in torch, with hooks where recipes observe and quantize."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from golden.errors import HwsimError
from golden.rearrange import merge_heads, patches, split_heads
from golden.windows import merge_order, place_order, relative_position_index, shift_mask, window_order
from hwsim.data import normalise
from hwsim.execute.parallel import map_batches
from hwsim.networks.graph import FloatGraph, FloatNode
from hwsim.program import check_images

# What Swin adds to a score that must not count.
MASKED = -100.0

# (node, its parameters as tensors, its operands) -> value
Operation = Callable[[FloatNode, Mapping[str, Tensor], Sequence[Tensor]], Tensor]


def _image(node: FloatNode, parameters: Mapping[str, Tensor], operands: Sequence[Tensor]) -> Tensor:
    return operands[0]


def _matmul(node: FloatNode, parameters: Mapping[str, Tensor], operands: Sequence[Tensor]) -> Tensor:
    product = operands[0] @ operands[1]
    scale = node.attributes["scale"]
    return product if scale == 1.0 else product * scale


def _concat(node: FloatNode, parameters: Mapping[str, Tensor], operands: Sequence[Tensor]) -> Tensor:
    batch = max(len(part) for part in operands)
    return torch.cat([part.expand(batch, *part.shape[1:]) for part in operands], dim=1)


def _layernorm(node: FloatNode, parameters: Mapping[str, Tensor], operands: Sequence[Tensor]) -> Tensor:
    (x,) = operands
    return functional.layer_norm(x, x.shape[-1:], parameters["weight"], parameters["bias"], node.attributes["eps"])


def _take_token(node: FloatNode, parameters: Mapping[str, Tensor], operands: Sequence[Tensor]) -> Tensor:
    index, count = node.attributes["index"], node.attributes["count"]
    return operands[0][:, index : index + count]


@lru_cache(maxsize=256)
def _constant(make: Callable[..., np.ndarray], device: torch.device, *arguments: int) -> Tensor:
    """An array of the window geometry on a device, made once: a copy from the host cannot be part of a CUDA graph.

    It is no inference tensor even where the first to ask runs without gradients.
    """
    with torch.inference_mode(False):
        return torch.from_numpy(make(*arguments).copy()).to(device)


def _moved(tokens: Tensor, make: Callable[..., np.ndarray], *arguments: int) -> Tensor:
    """Whole tokens in another order: [B, tokens, C] to [B, *order, C]."""
    order = _constant(make, tokens.device, *arguments)
    return tokens.index_select(1, order.flatten()).unflatten(1, order.shape)


def _partition_windows(node: FloatNode, parameters: Mapping[str, Tensor], operands: Sequence[Tensor]) -> Tensor:
    return _moved(operands[0], window_order, *_geometry(node))


def _join_windows(node: FloatNode, parameters: Mapping[str, Tensor], operands: Sequence[Tensor]) -> Tensor:
    return _moved(operands[0].flatten(1, 2), place_order, *_geometry(node))


def _merge_patches(node: FloatNode, parameters: Mapping[str, Tensor], operands: Sequence[Tensor]) -> Tensor:
    return _moved(operands[0], merge_order, node.attributes["height"], node.attributes["width"]).flatten(2)


def _geometry(node: FloatNode) -> tuple[int, ...]:
    return tuple(node.attributes[name] for name in ("height", "width", "window", "shift"))


def _window_bias(node: FloatNode, parameters: Mapping[str, Tensor], operands: Sequence[Tensor]) -> Tensor:
    scores, table = operands
    return scores + _moved(table, relative_position_index, node.attributes["window"])[0].permute(2, 0, 1)


def _shift_mask(node: FloatNode, parameters: Mapping[str, Tensor], operands: Sequence[Tensor]) -> Tensor:
    (scores,) = operands
    masked = _constant(shift_mask, scores.device, *_geometry(node))
    return torch.where(masked[:, None], scores + MASKED, scores)


FLOAT_OPERATIONS: dict[str, Operation] = {
    "image": _image,
    "patches": lambda node, parameters, operands: patches(operands[0], node.attributes["size"]),
    "linear": lambda node, parameters, operands: functional.linear(
        operands[0], parameters["weight"], parameters["bias"]
    ),
    "constant": lambda node, parameters, operands: parameters["value"][None],
    "concat": _concat,
    "add": lambda node, parameters, operands: operands[0] + operands[1],
    "layernorm": _layernorm,
    "split_heads": lambda node, parameters, operands: split_heads(operands[0], **node.attributes),
    "transpose": lambda node, parameters, operands: operands[0].swapaxes(-1, -2),
    "matmul": _matmul,
    "softmax": lambda node, parameters, operands: operands[0].softmax(dim=-1),
    "merge_heads": lambda node, parameters, operands: merge_heads(operands[0]),
    "gelu": lambda node, parameters, operands: functional.gelu(operands[0]),
    "take_token": _take_token,
    "join_tokens": lambda node, parameters, operands: operands[0].flatten(1)[:, None],
    "token_mean": lambda node, parameters, operands: operands[0].mean(dim=1, keepdim=True),
    "partition_windows": _partition_windows,
    "join_windows": _join_windows,
    "merge_patches": _merge_patches,
    "window_bias": _window_bias,
    "shift_mask": _shift_mask,
}


def normalised_pixels(graph: FloatGraph) -> np.ndarray:
    """Network input of every pixel value, float32 ``[channels, 256]``."""
    pixels = np.arange(256, dtype=np.uint8)[:, None].repeat(len(graph.mean), axis=1)
    return np.ascontiguousarray(normalise(pixels, graph.mean, graph.std).T)


def evaluate(
    nodes: Sequence[FloatNode],
    values: dict[str, Tensor],
    parameters: Callable[[FloatNode], Mapping[str, Tensor]],
    *,
    source: Tensor | None = None,
    after: Callable[[FloatNode, Tensor], Tensor] | None = None,
    operations: Mapping[str, Operation] | None = None,
) -> Tensor:
    """Value of the last of some nodes in execution order: of a network, or a part of one.

    Parameters
    ----------
    nodes : sequence of FloatNode
        One or more.
    values : dict of str to Tensor
        What they read from nodes before them; emptied on the way, as nothing keeps what no later node reads.
    parameters : callable
        Parameters of a node.
    source : Tensor, optional
        Normalised images, for the node that has no inputs.
    after, operations
        As in `Interpreter.forward`.
    """
    remaining: dict[str, int] = {}
    for node in nodes:
        for name in node.inputs:
            remaining[name] = remaining.get(name, 0) + 1
    for node in nodes:
        operands = [values[name] for name in node.inputs]
        if not operands and source is not None:
            operands = [source]
        operation = (operations or {}).get(node.name, FLOAT_OPERATIONS[node.operation])
        value = operation(node, parameters(node), operands)
        if after is not None:
            value = after(node, value)
        values[node.name] = value
        for name in node.inputs:
            remaining[name] -= 1
            if not remaining[name]:
                del values[name]
    return value


class Interpreter:
    """A float graph on a torch device.

    Parameters
    ----------
    graph : FloatGraph
    device : str or torch.device
    """

    def __init__(self, graph: FloatGraph, device: str | torch.device = "cpu") -> None:
        self.graph = graph
        self.device = torch.device(device)
        self.parameters: dict[str, dict[str, Tensor]] = {
            node.name: {name: torch.from_numpy(array).to(self.device) for name, array in node.parameters.items()}
            for node in graph.nodes
        }
        self._pixels = torch.from_numpy(normalised_pixels(graph)).to(self.device)

    def load(self, images: np.ndarray) -> Tensor:
        """Normalised float32 images [N, H, W, C] of uint8 ones."""
        check_images(self.graph.name, self.graph.image_size, images)
        pixels = torch.from_numpy(images).to(self.device).int()
        channel = torch.arange(images.shape[-1], device=self.device)
        return self._pixels[channel, pixels]

    @torch.inference_mode()
    def run(
        self,
        images: np.ndarray,
        *,
        after: Callable[[FloatNode, Tensor], Tensor] | None = None,
        operations: Mapping[str, Operation] | None = None,
        parameters: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> Tensor:
        """`forward` without gradients."""
        return self.forward(images, after=after, operations=operations, parameters=parameters)

    def forward(
        self,
        images: np.ndarray,
        *,
        after: Callable[[FloatNode, Tensor], Tensor] | None = None,
        operations: Mapping[str, Operation] | None = None,
        parameters: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> Tensor:
        """Logits [N, classes] of a batch of uint8 images, with gradients of what `after` gives a gradient.

        Parameters
        ----------
        images : ndarray of uint8 [N, H, W, C]
        after : callable, optional
            Called with every node and its value; what it returns goes on.
        operations : mapping, optional
            Replacements by node name, for operations that quantize inside.
        parameters : mapping, optional
            Replacements by node name, for quantized weights.
        """
        value = evaluate(
            self.graph.nodes,
            {},
            lambda node: {**self.parameters[node.name], **(parameters or {}).get(node.name, {})},
            source=self.load(images),
            after=after,
            operations=operations,
        )
        return value.reshape(len(value), -1)


def predict(
    interpreter: Interpreter, images: np.ndarray, *, batch: int = 64, progress: Callable[[int], None] | None = None
) -> np.ndarray:
    """Float logits [N, classes] as NumPy, batch by batch; `progress` gets the images of each."""
    run = interpreter.run
    return np.concatenate(map_batches(lambda part: run(images[part]).cpu().numpy(), len(images), batch, progress))


def check_activation(network: str, node: FloatNode, value: Tensor) -> None:
    """Refuse NaN and infinity in an activation.

    Raises
    ------
    HwsimError
        Names the point and the first bad index.
    """
    # A sum is one cheap pass; NaN and infinity always show in it.
    if not torch.isfinite(value.sum()) and not torch.isfinite(value).all():
        index = [int(i) for i in (~torch.isfinite(value)).nonzero()[0]]
        raise HwsimError(
            f"{network}: the activation {node.name}{index} is not finite during calibration; "
            "check the checkpoint and the calibration images"
        )
