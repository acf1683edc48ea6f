"""The integer program: a graph of specs and integer constants, and its file.

A program takes uint8 images and gives logit codes; no float is on the way. The
scales in its header are there for reports and audits, no executor reads them.
The file is safetensors with a JSON header; it is checked, and every accumulator
proven, when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import golden
import golden.units  # makes every unit known to spec_from_dict
from golden.errors import HwsimError
from golden.log2_matmul import Log2MatmulSpec
from golden.spec import IntFormat, Shape, Spec, spec_from_dict
from golden.tensor_file import load_tensors, save_tensors

# 2 packs the constants at the widths of their specs; 1 had each in an array of its own.
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
PURPOSE = "program"
INPUT = "pixels"


@dataclass(frozen=True)
class Node:
    """One unit of a program.

    Parameters
    ----------
    name : str
        Unique; the name of the point at the output.
    spec : Spec
    inputs : tuple of str
        Names of nodes, or `INPUT`.
    constants : mapping of str to integer array
    """

    name: str
    spec: Spec
    inputs: tuple[str, ...]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """A checked program; building one proves it, see Raises.

    Parameters
    ----------
    nodes : tuple of Node
        In execution order; the last gives the logit codes ``[1, classes]``.
    image_size : tuple of int
        Height, width, channels of the uint8 input.
    header : mapping
        JSON values that say where the program comes from: "network", "recipe", "scales"
        (by node: scale or list of scales, zero point), "lowering" (errors of the multipliers).

    Raises
    ------
    HwsimError
        A constant is missing or out of range, operands do not fit in width or shape, or an
        accumulator could overflow. The message names the node.
    """

    nodes: tuple[Node, ...]
    image_size: tuple[int, int, int]
    header: Mapping[str, Any]

    def __post_init__(self) -> None:
        formats: dict[str, IntFormat] = {INPUT: IntFormat(8)}
        shapes: dict[str, Shape] = {INPUT: tuple(self.image_size)}
        specs: dict[str, Spec] = {}
        checked = []
        for node in self.nodes:
            if node.name in formats:
                raise HwsimError(f"program: two nodes are called {node.name!r}")
            if len(node.inputs) != len(node.spec.inputs):
                raise HwsimError(
                    f"{node.name}: {node.spec.kind} takes {len(node.spec.inputs)} inputs, not {len(node.inputs)}"
                )
            for name, expected in zip(node.inputs, node.spec.inputs, strict=True):
                if name not in formats:
                    raise HwsimError(f"{node.name}: input {name!r} is not an earlier node of the program")
                if formats[name] != expected:
                    raise HwsimError(f"{node.name}: takes {expected} codes, but {name} gives {formats[name]} ones")
            if isinstance(node.spec, Log2MatmulSpec) and specs[node.inputs[0]].kind != "log_softmax":
                raise HwsimError(f"{node.name}: the width of a log2_matmul is proven for rows of a log_softmax only")
            constants = node.spec.check_constants(node.constants, node.name)
            try:
                shapes[node.name] = node.spec.shape(*(shapes[name] for name in node.inputs))
            except HwsimError as error:
                raise HwsimError(f"{node.name}: {error}") from None
            formats[node.name] = node.spec.output
            specs[node.name] = node.spec
            checked.append(Node(node.name, node.spec, node.inputs, constants))
        if not checked:
            raise HwsimError("program: it has no nodes")
        object.__setattr__(self, "nodes", tuple(checked))
        object.__setattr__(self, "_shapes", shapes)

    def __getitem__(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise HwsimError(f"the program has no node {name!r}; `hwsim show` lists them")

    def shape(self, name: str) -> Shape:
        """Shape of a node's output without the batch axis."""
        shapes: dict[str, Shape] = self._shapes  # type: ignore[attr-defined]
        return shapes[name]

    @property
    def network(self) -> str:
        return str(self.header.get("network", "unknown"))

    @property
    def recipe(self) -> str:
        return str(self.header.get("recipe", "unknown"))

    def check_images(self, images: np.ndarray) -> None:
        """Refuse images that the program does not take.

        Raises
        ------
        HwsimError
            Not uint8 [N, H, W, C] of the program's size.
        """
        check_images(self.network, self.image_size, images)


def check_images(network: str, image_size: tuple[int, ...], images: np.ndarray) -> None:
    """Refuse images that a network does not take.

    Raises
    ------
    HwsimError
        Not uint8 [N, H, W, C] of the network's size.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != tuple(image_size):
        raise HwsimError(
            f"{network} takes uint8 images of shape [N, {', '.join(map(str, image_size))}] (height, width, channels), "
            f"not {images.dtype} {list(images.shape)}; resize or convert them"
        )


def save_program(program: Program, path: Path) -> None:
    """Write a program as one file, whole or not at all.

    Raises
    ------
    HwsimError
        The file cannot be written.
    """
    header = {
        "package_version": golden.__version__,
        "image_size": list(program.image_size),
        "header": program.header,
        "nodes": [
            {"name": node.name, "inputs": list(node.inputs), "spec": node.spec.to_dict()} for node in program.nodes
        ],
    }
    arrays, formats = {}, {}
    for node in program.nodes:
        described = node.spec.constants
        for name, array in node.constants.items():
            arrays[f"{node.name}:{name}"] = array
            formats[f"{node.name}:{name}"] = described[name].format
    save_tensors(path, PURPOSE, FORMAT_VERSION, header, arrays, formats)


def load_program(path: Path) -> Program:
    """Read and prove a program file.

    Raises
    ------
    HwsimError
        The file is missing, truncated, not a program, of another format version, altered
        since it was written, or its content is not a valid program. The message names the
        file and the remedy.
    """
    remedy = "calibrate again with `hwsim calibrate`"
    values, arrays = load_tensors(path, PURPOSE, READABLE_VERSIONS, remedy)
    try:
        nodes = []
        for entry in values["nodes"]:
            name = entry["name"]
            constants = {key[len(name) + 1 :]: arrays[key] for key in arrays if key.startswith(f"{name}:")}
            nodes.append(Node(name, spec_from_dict(entry["spec"], name), tuple(entry["inputs"]), constants))
        height, width, channels = values["image_size"]
        return Program(tuple(nodes), (height, width, channels), values["header"])
    except HwsimError as error:
        raise HwsimError(f"{path}: {error}; {remedy}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise HwsimError(f"{path}: malformed program header ({error!r}); {remedy}") from None
