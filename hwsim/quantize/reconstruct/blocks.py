"""The parts of a network that are reconstructed one after the other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

from golden.errors import HwsimError
from hwsim.networks.graph import FloatGraph, FloatNode

# Nodes of a transformer block, of ViT and DeiT ("blocks.3.") and of Swin ("layers.1.blocks.0."), with its attention
# and its MLP; what lies between blocks is a part of its own: patch embedding, patch merging, head.
_BLOCK = re.compile(r"(.*\bblocks\.\d+)\.")


@dataclass(frozen=True)
class Block:
    """Consecutive nodes with one input and one output.

    Attributes
    ----------
    name : str
        Of the transformer block; of other parts that of their last linear layer, or of the last node.
    nodes : tuple of FloatNode
    source : str
        Node whose value it reads; empty for the part that reads the images.
    """

    name: str
    nodes: tuple[FloatNode, ...]
    source: str

    @property
    def output(self) -> FloatNode:
        """The node whose value goes on."""
        return self.nodes[-1]


def blocks(graph: FloatGraph) -> list[Block]:
    """The blocks of a network in execution order; together they are all its nodes.

    Raises
    ------
    HwsimError
        A block that reads more than one value from before, or whose values later ones read too.
    """
    found = []
    done: set[str] = set()
    for key, group in groupby(graph.nodes, _block_name):
        nodes = tuple(group)
        inner = {node.name for node in nodes}
        sources = {name for node in nodes for name in node.inputs if name not in inner}
        readers = {name for node in graph.nodes if node.name not in inner | done for name in node.inputs}
        if len(sources) > 1 or (readers & inner) - {nodes[-1].name}:
            raise HwsimError(
                f"{graph.name}: {key or nodes[-1].name} has more than one input or output, so it cannot be "
                "reconstructed on its own; leave the reconstruction out"
            )
        linear = [node.name for node in nodes if node.operation == "linear"]
        found.append(Block(key or (linear or [nodes[-1].name])[-1], nodes, next(iter(sources), "")))
        done |= inner
    return found


def _block_name(node: FloatNode) -> str:
    match = _BLOCK.match(node.name)
    return match[1] if match else ""
