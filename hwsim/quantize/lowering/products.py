"""Lowering of matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np

from golden.accumulate import signed_bits
from golden.asymmetric_linear import AsymmetricLinearSpec
from golden.linear import LinearSpec
from golden.matmul import MatmulSpec
from hwsim.networks.graph import FloatNode
from hwsim.quantize.lowering.builder import ChannelGrid, ProgramBuilder
from hwsim.quantize.quantizers.uniform import HeadGrid, UniformGrid

# Weights shifted by the fraction bits of the bias stay bytes, for which processors have products.
WIDEST_SHIFTED = 8


def lower_linear(builder: ProgramBuilder, node: FloatNode) -> None:
    """Constant weights; the bias holds the correction for the input's zero point."""
    grid: Any = builder.grid(node.inputs[0])
    if hasattr(grid, "emit_linear"):
        grid.emit_linear(builder, node)
        return
    incoming, outgoing = builder.uniform(node.inputs[0]), builder.linear_output(node)
    weight = builder.calibration.weights[node.name]
    fraction = max(0, min(builder.widths.bias_fraction_bits or 0, WIDEST_SHIFTED - weight.bits))
    unit = builder.row_units(weight, np.ldexp(incoming.scale * weight.scale, -fraction), outgoing)
    outputs, inputs = weight.codes.shape
    offset = outgoing.offset * outgoing.scale if isinstance(outgoing, ChannelGrid) else 0.0
    bias = np.rint((node.parameters["bias"].astype(np.float64) + offset) / unit).astype(np.int64)
    bias -= (incoming.zero_point * weight.centred.sum(axis=1)) << fraction
    requantize, constants = builder.requantizer(node.name, unit / outgoing.scales(outputs), outgoing)
    if weight.zero_point is not None:
        constants["zero_weight"] = weight.zero_point
    kind = LinearSpec if weight.zero_point is None else AsymmetricLinearSpec
    spec = kind(
        input_features=inputs,
        output_features=outputs,
        input_bits=incoming.bits,
        weight_bits=weight.bits,
        bias_bits=signed_bits(int(bias.min()), int(bias.max())),
        bias_fraction_bits=fraction,
        overflow=builder.widths.overflow,
        requantize=requantize,
    )
    builder.emit_narrowed(
        node, spec, {"weight": weight.codes, "bias": bias, **constants}, builder.widths.accumulator_bits
    )


def lower_matmul(builder: ProgramBuilder, node: FloatNode) -> None:
    """Two activations; the first one's grid may bring a unit of its own."""
    first: Any = builder.grid(node.inputs[0])
    if hasattr(first, "emit_product"):
        first.emit_product(builder, node)
        return
    assert isinstance(first, UniformGrid | HeadGrid)
    second = builder.second_operand(node, "zero_b")
    heads = len(first.scale) if isinstance(first, HeadGrid) else second.heads
    unit = first.scales(heads) * second.scale
    requantize, constants = builder.requantizer(node.name, unit / second.outgoing.scale, second.outgoing)
    zero_a, zero_b = first.zero_points(heads), np.broadcast_to(second.constants["zero_b"], (heads,))
    spec = MatmulSpec(a_bits=first.bits, b_bits=second.bits, inner=second.inner, heads=heads, requantize=requantize)
    constants |= {"zero_a": zero_a if heads > 1 else zero_a[0], "zero_b": zero_b if heads > 1 else zero_b[0]}
    builder.emit_narrowed(node, spec, constants)
