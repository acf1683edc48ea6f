"""Lowering of what becomes a table or a constant."""

from __future__ import annotations

import torch

from golden.lookup import LookupSpec
from golden.rearrange import ConcatSpec, ConstantSpec
from hwsim.networks.graph import FloatNode
from hwsim.networks.interpret import normalised_pixels
from hwsim.program import INPUT
from hwsim.quantize.lowering.builder import ProgramBuilder
from hwsim.quantize.lowering.carriers import gelu


def lower_image(builder: ProgramBuilder, node: FloatNode) -> None:
    """Pixels to normalised codes, a table a colour."""
    grid = builder.uniform(node.name)
    table = grid.codes(torch.from_numpy(normalised_pixels(builder.graph))).numpy()
    spec = LookupSpec(input_bits=8, output_bits=grid.bits, channels=len(table))
    builder.emit(node.name, spec, (INPUT,), {"table": table})


def lower_gelu(builder: ProgramBuilder, node: FloatNode) -> None:
    """Hidden codes to the codes of GELU, whatever their grid."""
    hidden, outgoing = builder.uniform(node.inputs[0]), builder.grid(node.name)
    x = hidden.values(torch.arange(hidden.highest + 1, dtype=torch.float64))
    table = outgoing.codes(torch.tensor([gelu(float(value)) for value in x], dtype=torch.float64)).numpy()
    # A zero symbol is a code more than the bits have.
    spec = LookupSpec(input_bits=hidden.bits, output_bits=outgoing.bits + hasattr(outgoing, "zero_symbol"))
    builder.emit(node.name, spec, node.inputs, {"table": table[None]})


def lower_constant(builder: ProgramBuilder, node: FloatNode) -> None:
    """Codes of a constant. The class token has no point of its own; its codes are those of the sequence it joins."""
    owner = node.name
    if not node.role:
        owner = next(user.name for user in builder.graph.nodes if node.name in user.inputs)
    grid = builder.uniform(owner)
    codes = grid.codes(torch.from_numpy(node.parameters["value"])).numpy()
    rows, columns = codes.shape
    builder.emit(node.name, ConstantSpec(rows=rows, columns=columns, bits=grid.bits), (), {"value": codes})


def lower_concat(builder: ProgramBuilder, node: FloatNode) -> None:
    """Class token and sequence, the latter moved to the grid of the whole where it is on another."""
    token, sequence = node.inputs
    incoming, outgoing = builder.uniform(sequence), builder.uniform(node.name)
    if incoming == outgoing:
        builder.emit(node.name, ConcatSpec(bits=outgoing.bits), node.inputs)
        return
    values = incoming.values(torch.arange(incoming.highest + 1, dtype=torch.float32))
    regrid = f"{node.name}.{sequence.rpartition('.')[0] or sequence}"
    spec = LookupSpec(input_bits=incoming.bits, output_bits=outgoing.bits)
    builder.emit(regrid, spec, (sequence,), {"table": outgoing.codes(values).numpy()[None]})
    builder.emit(node.name, ConcatSpec(bits=outgoing.bits), (token, regrid))
