"""Operations of a float graph as a training step needs them: nothing but torch, indices made once.

`hwsim.networks.interpret` runs the window operations of Swin on NumPy's indices, made at every call; neither a
compiler nor a CUDA graph can do that. Here the same rearrangements of `golden` run once, on token numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from golden.spec import Shape
from golden.windows import join_windows, merge_patches, partition_windows, position_bias, shift_mask
from hwsim.networks.graph import FloatGraph, FloatNode
from hwsim.networks.interpret import MASKED, Operation

_GATHERS: dict[str, Callable[..., np.ndarray]] = {
    "partition_windows": partition_windows,
    "join_windows": join_windows,
    "merge_patches": merge_patches,
}


def tensor_operations(graph: FloatGraph, device: torch.device) -> dict[str, Operation]:
    """Replacements, by node name, of the operations that use NumPy inside; for `hwsim.networks.interpret.evaluate`."""
    made = {}
    for node in graph.nodes:
        shapes = [graph.shapes[name] for name in node.inputs]
        if node.operation in _GATHERS:
            made[node.name] = _gather(node, shapes[0], graph.shapes[node.name], _GATHERS[node.operation], device)
        elif node.operation == "window_bias":
            made[node.name] = _window_bias(node, shapes[1], device)
        elif node.operation == "shift_mask":
            made[node.name] = _shift_mask(node, device)
    return made


def _gather(
    node: FloatNode, incoming: Shape, outgoing: Shape, move: Callable[..., np.ndarray], device: torch.device
) -> Operation:
    """Whole tokens moved: where each comes from is what the movement does to their numbers."""
    *lead, channels = incoming
    numbers = np.arange(np.prod(lead)).reshape(1, *lead, 1)
    order = torch.from_numpy(move(numbers, **node.attributes).reshape(-1).copy()).to(device)

    def gather(node: FloatNode, parameters: Mapping[str, Tensor], operands: Sequence[Tensor]) -> Tensor:
        tokens = operands[0].reshape(-1, len(order), channels)
        return tokens.index_select(1, order).reshape(-1, *outgoing)

    return gather


def _window_bias(node: FloatNode, table: Shape, device: torch.device) -> Operation:
    entries = np.arange(np.prod(table)).reshape(table)
    order = position_bias(entries, node.attributes["window"])
    index = torch.from_numpy(order.reshape(-1).copy()).to(device)

    def add(node: FloatNode, parameters: Mapping[str, Tensor], operands: Sequence[Tensor]) -> Tensor:
        scores, entries = operands
        return scores + entries.reshape(-1).index_select(0, index).reshape(order.shape)

    return add


def _shift_mask(node: FloatNode, device: torch.device) -> Operation:
    masked = torch.from_numpy(shift_mask(**node.attributes))[:, None].to(device)

    def mask(node: FloatNode, parameters: Mapping[str, Tensor], operands: Sequence[Tensor]) -> Tensor:
        return torch.where(masked, operands[0] + MASKED, operands[0])

    return mask
