"""Lowering of what works on rows: residual sums, LayerNorm, softmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from golden.accumulate import signed_bits
from golden.add import AddSpec
from golden.errors import HwsimError
from golden.layernorm import LayerNormSpec
from hwsim.networks.graph import FloatNode
from hwsim.quantize.lowering.builder import SHIFT_BITS, ProgramBuilder
from hwsim.quantize.quantizers.power_of_two import PowerOfTwoGrid
from hwsim.quantize.quantizers.uniform import UniformGrid


def lower_add(builder: ProgramBuilder, node: FloatNode) -> None:
    """Two operands on grids of their own."""
    outgoing = _row_grid(builder, node.name)
    operands = [_row_grid(builder, name) for name in node.inputs]
    channels = builder.shapes[node.inputs[0]][-1]
    constants = builder.add_constants(node.name, operands, outgoing, channels)
    offset = constants["offset"]
    spec = AddSpec(
        channels=channels,
        a_bits=operands[0].bits,
        b_bits=operands[1].bits,
        output_bits=outgoing.bits,
        multiplier_bits=builder.widths.multiplier_bits,
        shift_bits=SHIFT_BITS,
        offset_bits=signed_bits(int(offset.min()), int(offset.max())),
    )
    builder.emit(node.name, spec, node.inputs, constants)


def _row_grid(builder: ProgramBuilder, name: str) -> UniformGrid | PowerOfTwoGrid:
    grid = builder.grid(name)
    if not isinstance(grid, UniformGrid | PowerOfTwoGrid):
        raise HwsimError(f"{name}: residual sums and LayerNorm inputs cannot be on a {type(grid).__name__}")
    return grid


def lower_layernorm(builder: ProgramBuilder, node: FloatNode) -> None:
    """Gamma and beta in units of the output step, as wide as the recipe says."""
    incoming, outgoing = _row_grid(builder, node.inputs[0]), builder.uniform(node.name)
    width = builder.widths.gamma_bits
    gamma = node.parameters["weight"].astype(np.float64) / outgoing.scale
    beta = node.parameters["bias"].astype(np.float64) / outgoing.scale + outgoing.zero_point
    channels = len(gamma)
    alpha = np.zeros(channels, np.int64)
    if isinstance(incoming, PowerOfTwoGrid):
        alpha = incoming.alpha_of(channels) - incoming.alpha.min()
    fraction = width - 1 - math.frexp(float(np.abs(gamma).max()))[1]
    fraction = max(0, min(fraction, 16))
    gamma_codes = np.rint(np.ldexp(gamma, fraction)).astype(np.int64)
    limit = (1 << (width - 1)) - 1
    if np.abs(gamma_codes).max() > limit:
        if fraction == 0:
            raise HwsimError(f"{node.name}: gamma over the output scale exceeds {width} bits; widen gamma_bits")
        fraction -= 1
        gamma_codes = np.rint(np.ldexp(gamma, fraction)).astype(np.int64)
    beta_codes = np.rint(np.ldexp(beta, fraction)).astype(np.int64)
    spec = LayerNormSpec(
        channels=channels,
        input_bits=incoming.bits,
        output_bits=outgoing.bits,
        alpha_bits=2 if isinstance(incoming, PowerOfTwoGrid) else 0,
        mantissa_bits=builder.widths.mantissa_bits,
        radicand_bits=builder.widths.radicand_bits,
        gamma_bits=width,
        # A LayerNorm of zeros has no beta; the unit has two bits for it at least.
        beta_bits=max(2, signed_bits(int(beta_codes.min()), int(beta_codes.max()))),
    )
    constants = {
        "zero_in": incoming.zero_point,
        "alpha": alpha,
        "gamma": gamma_codes,
        "beta": beta_codes,
        "fraction_bits": fraction,
    }
    builder.emit(node.name, spec, node.inputs, constants)


def lower_softmax(builder: ProgramBuilder, node: FloatNode) -> None:
    """Probabilities requantized; quantizers that are not uniform bring their own units."""
    outgoing: Any = builder.grid(node.name)
    if hasattr(outgoing, "emit_softmax"):
        outgoing.emit_softmax(builder, node)
        return
    if not isinstance(outgoing, UniformGrid):
        raise HwsimError(f"{node.name}: a softmax has no {type(outgoing).__name__}")
    name, probability = builder.emit_probability(node)
    ratio = np.array([1 / (outgoing.scale * 2**probability.probability_bits)])
    spec, constants = builder.requantizer(node.name, ratio, outgoing, probability.output)
    builder.emit(node.name, spec, (name,), constants)
