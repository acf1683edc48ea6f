"""Lowering of data movement: codes keep their width and grid."""

from __future__ import annotations

from golden.rearrange import MergeHeadsSpec, PatchesSpec, SplitHeadsSpec, TakeTokenSpec, TransposeSpec
from hwsim.networks.graph import FloatNode
from hwsim.quantize.lowering.builder import ProgramBuilder


def lower_patches(builder: ProgramBuilder, node: FloatNode) -> None:
    """Image codes to patches."""
    builder.emit(node.name, PatchesSpec(bits=builder.bits(node.inputs[0]), **node.attributes), node.inputs)


def lower_split_heads(builder: ProgramBuilder, node: FloatNode) -> None:
    """Queries, keys or values of a joint projection."""
    builder.emit(node.name, SplitHeadsSpec(bits=builder.bits(node.inputs[0]), **node.attributes), node.inputs)


def lower_merge_heads(builder: ProgramBuilder, node: FloatNode) -> None:
    """Heads side by side."""
    builder.emit(node.name, MergeHeadsSpec(bits=builder.bits(node.inputs[0])), node.inputs)


def lower_transpose(builder: ProgramBuilder, node: FloatNode) -> None:
    """Last two axes swapped."""
    builder.emit(node.name, TransposeSpec(bits=builder.bits(node.inputs[0])), node.inputs)


def lower_take_token(builder: ProgramBuilder, node: FloatNode) -> None:
    """One token of a sequence."""
    builder.emit(node.name, TakeTokenSpec(bits=builder.bits(node.inputs[0]), **node.attributes), node.inputs)
