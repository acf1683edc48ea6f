"""Bytes of a program: constants by what they are, and activations while they are needed.

Every array is packed: elements of n bits take n bits, and an array ends on a whole byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from golden.rearrange import ConcatSpec, ConstantSpec
from golden.spec import IntFormat, Shape
from hwsim.cost.operations import MOVEMENTS
from hwsim.program import INPUT, Node, Program

PIXEL = IntFormat(8)
# Nodes that only move codes hold none of their own: whoever reads them reads their operand in another order.
# A concatenation has two operands, so that it needs a place.
VIEWS = MOVEMENTS - {ConcatSpec.kind, ConstantSpec.kind}
_TABLES = frozenset({"table", "shift_table", "mantissa_table", "thresholds"})


def packed_bytes(shape: Shape, bits: int) -> int:
    """Bytes of a packed array."""
    return -(-math.prod(shape) * bits // 8)


@dataclass(frozen=True)
class ConstantBytes:
    """Bytes of constants.

    Attributes
    ----------
    weights, biases : int
        Of linear layers.
    tables : int
        Lookup tables, tables and thresholds of logarithmic codes.
    other : int
        Multipliers, shifts, zero points, gamma and beta, embeddings.
    """

    weights: int = 0
    biases: int = 0
    tables: int = 0
    other: int = 0

    def __add__(self, more: ConstantBytes) -> ConstantBytes:
        return ConstantBytes(
            self.weights + more.weights, self.biases + more.biases, self.tables + more.tables, self.other + more.other
        )

    @property
    def total(self) -> int:
        return self.weights + self.biases + self.tables + self.other


def constant_bytes(node: Node) -> ConstantBytes:
    """Bytes of a node's constants, each in the width of its format."""
    found = ConstantBytes()
    for name, constant in node.spec.constants.items():
        size = packed_bytes(constant.shape, constant.format.bits)
        field = (
            "weights" if name == "weight" else "biases" if name == "bias" else "tables" if name in _TABLES else "other"
        )
        found += ConstantBytes(**{field: size})
    return found


@dataclass(frozen=True)
class Activations:
    """Activation bytes.

    Attributes
    ----------
    outputs : dict of str to int
        Of every node, and of the image as `hwsim.program.INPUT`; 0 for what only moves or is constant.
    live : dict of str to int
        What is needed while a node runs: its operands, its output, and what later nodes still read.
    """

    outputs: dict[str, int]
    live: dict[str, int]

    @property
    def peak(self) -> tuple[str, int]:
        """Node at which most is live, and how much."""
        return max(self.live.items(), key=lambda item: item[1])


def stored_at(program: Program) -> dict[str, str | None]:
    """Where each node's codes lie: its own name, that of the node whose output it reads, None for constants."""
    place: dict[str, str | None] = {INPUT: INPUT}
    for node in program.nodes:
        if node.spec.kind == ConstantSpec.kind:
            place[node.name] = None
        elif node.spec.kind in VIEWS:
            place[node.name] = place[node.inputs[0]]
        else:
            place[node.name] = node.name
    return place


def activations(program: Program) -> Activations:
    """Activation bytes of one picture, nodes one after the other in the program's order."""
    place = stored_at(program)
    outputs = {INPUT: packed_bytes(program.image_size, PIXEL.bits)}
    last_use: dict[str, int] = {}
    for index, node in enumerate(program.nodes):
        own = place[node.name] == node.name
        outputs[node.name] = packed_bytes(program.shape(node.name), node.spec.output.bits) if own else 0
        for name in (*node.inputs, node.name):
            stored = place[name]
            if stored is not None:
                last_use[stored] = index
    held: dict[str, int] = {INPUT: outputs[INPUT]}
    live: dict[str, int] = {}
    for index, node in enumerate(program.nodes):
        held[node.name] = outputs[node.name]
        live[node.name] = sum(held.values())
        held = {name: size for name, size in held.items() if last_use.get(name, -1) > index}
    return Activations(outputs, live)
