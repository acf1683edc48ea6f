"""Float graph: a network as a list of operations with named points, before quantization.

Recipes attach quantizers to the points; the lowering turns each node into a unit
of the integer program. Holds NumPy arrays only; `hwsim.networks.interpret` runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from golden.errors import HwsimError
from golden.spec import Shape

# What an operation needs besides its inputs: parameters (arrays) and attributes.
OPERATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "image": ((), ()),
    "patches": ((), ("size",)),
    "linear": (("weight", "bias"), ()),
    "constant": (("value",), ()),
    "concat": ((), ()),
    "add": ((), ()),
    "layernorm": (("weight", "bias"), ("eps",)),
    "split_heads": ((), ("heads", "part", "parts")),
    "transpose": ((), ()),
    "matmul": ((), ("scale",)),
    "softmax": ((), ()),
    "merge_heads": ((), ()),
    "gelu": ((), ()),
    "take_token": ((), ("index", "count")),
    "join_tokens": ((), ()),
    "token_mean": ((), ()),
    "partition_windows": ((), ("height", "width", "window", "shift")),
    "join_windows": ((), ("height", "width", "window", "shift")),
    "merge_patches": ((), ("height", "width")),
    "window_bias": ((), ("window",)),
    "shift_mask": ((), ("height", "width", "window", "shift")),
}


# What a point can be; recipes choose quantizers by it. A norm is the input of a linear layer, but "pooled", which is
# Swin's last one: a mean of tokens follows it. Query, key and value are parts of the joint projection, for
# recipes that quantize each operand of a matrix product on its own.
ROLES = (
    "input",
    "patch",
    "embed",
    "position",
    "residual",
    "norm",
    "pooled",
    "qkv",
    "query",
    "key",
    "value",
    "scores",
    "table",
    "biased scores",
    "attention",
    "context",
    "projection",
    "hidden",
    "gelu",
    "mlp",
    "feature",
    "logits",
)

# Operations that move values and leave them on the grid of their input. A shift mask moves what it masks out of
# reach and leaves the rest alone.
MOVEMENTS = frozenset(
    {
        "patches",
        "split_heads",
        "transpose",
        "merge_heads",
        "take_token",
        "join_tokens",
        "partition_windows",
        "join_windows",
        "merge_patches",
        "shift_mask",
    }
)


@dataclass(frozen=True)
class FloatNode:
    """One operation and the point at its output.

    Parameters
    ----------
    name : str
        Unique; follows timm's module names where there is one.
    operation : str
        A key of `OPERATIONS`.
    role : str
        What kind of point the output is, one of `ROLES`; recipes choose the quantizer by it. Empty
        for points that no recipe quantizes (data movement).
    inputs : tuple of str
        Names of the operands.
    parameters : mapping of str to float32 array
    attributes : mapping of str to int or float
    """

    name: str
    operation: str
    role: str = ""
    inputs: tuple[str, ...] = ()
    parameters: Mapping[str, np.ndarray] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parameters, attributes = OPERATIONS[self.operation]
        if set(self.parameters) != set(parameters) or set(self.attributes) != set(attributes):
            raise TypeError(f"{self.name}: {self.operation} takes {parameters} and {attributes}")
        if self.role and self.role not in ROLES:
            raise TypeError(f"{self.name}: the role {self.role!r} is not in ROLES")


@dataclass(frozen=True)
class FloatGraph:
    """A float network: nodes in execution order, the last one gives the logits.

    Parameters
    ----------
    name : str
        Name of the network.
    nodes : tuple of FloatNode
    image_size : tuple of int
        Height, width, channels of the uint8 input image.
    mean, std : tuple of float
        Normalisation a channel: ``(pixel / 255 - mean) / std``.
    classes : int
    crop_ratio : float
        Side of the centre crop over that of the resized image, for data sets of other sizes.
    """

    name: str
    nodes: tuple[FloatNode, ...]
    image_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    crop_ratio: float = 1.0

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for node in self.nodes:
            missing = [name for name in node.inputs if name not in seen]
            if missing or node.name in seen:
                raise TypeError(f"{node.name}: duplicate name or input before its definition: {missing}")
            seen.add(node.name)

    def __getitem__(self, name: str) -> FloatNode:
        return next(node for node in self.nodes if node.name == name)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every node's value without the batch axis, by name.

        Raises
        ------
        HwsimError
            Operands that do not fit, with the name of the node.
        """
        from hwsim.networks.shapes import node_shape

        shapes: dict[str, Shape] = {}
        for node in self.nodes:
            try:
                operands = [shapes[name] for name in node.inputs] or [self.image_size]
                shapes[node.name] = node_shape(node, *operands)
            except HwsimError as error:
                raise HwsimError(f"{self.name}: {node.name}: {error}") from None
        return shapes

    def source(self, name: str) -> FloatNode:
        """The node whose point decides the codes at `name`: itself, or what it moves."""
        node = self[name]
        while node.operation in MOVEMENTS:
            node = self[node.inputs[0]]
        return node

    def check(self) -> None:
        """Refuse operands that do not fit, and NaN and infinity in the parameters.

        Raises
        ------
        HwsimError
            Names the node, or the parameter and the first bad index.
        """
        _ = self.shapes  # computing them refuses what does not fit
        for node in self.nodes:
            for name, array in node.parameters.items():
                bad = ~np.isfinite(array)
                if bad.any():
                    index = tuple(int(i) for i in np.argwhere(bad)[0])
                    raise HwsimError(
                        f"{self.name}: parameter {node.name}.{name}{list(index)} is {array[index]}; "
                        "the checkpoint is damaged, use another"
                    )
