"""Lowering of Swin's windows, and of the token mean."""

from __future__ import annotations

import numpy as np

from golden.accumulate import signed_bits
from golden.errors import HwsimError
from golden.log_softmax import WIDEST_SCORE
from golden.rearrange import JoinTokensSpec
from golden.token_mean import TokenMeanSpec
from golden.windows import JoinWindowsSpec, MergePatchesSpec, PartitionWindowsSpec, ShiftMaskSpec, WindowBiasSpec
from hwsim.networks.graph import FloatNode
from hwsim.quantize.lowering.builder import SHIFT_BITS, ProgramBuilder
from hwsim.quantize.lowering.masks import octave_and_room
from hwsim.quantize.quantizers.log2 import Log2Grid

# Of i-exp in the released code; a code past it is a code there too.
PUBLISHED_FRACTION_BITS = 30


def lower_partition_windows(builder: ProgramBuilder, node: FloatNode) -> None:
    """Cyclic shift and windows."""
    builder.emit(node.name, PartitionWindowsSpec(bits=builder.bits(node.inputs[0]), **node.attributes), node.inputs)


def lower_join_windows(builder: ProgramBuilder, node: FloatNode) -> None:
    """Windows back to the feature map."""
    builder.emit(node.name, JoinWindowsSpec(bits=builder.bits(node.inputs[0]), **node.attributes), node.inputs)


def lower_merge_patches(builder: ProgramBuilder, node: FloatNode) -> None:
    """Four neighbours side by side."""
    builder.emit(node.name, MergePatchesSpec(bits=builder.bits(node.inputs[0]), **node.attributes), node.inputs)


def lower_join_tokens(builder: ProgramBuilder, node: FloatNode) -> None:
    """Tokens side by side."""
    builder.emit(node.name, JoinTokensSpec(bits=builder.bits(node.inputs[0])), node.inputs)


def lower_token_mean(builder: ProgramBuilder, node: FloatNode) -> None:
    """An exact sum; the division by the tokens is in the multiplier."""
    incoming, outgoing = builder.uniform(node.inputs[0]), builder.uniform(node.name)
    tokens = builder.shapes[node.inputs[0]][0]
    ratio = np.array([incoming.scale / outgoing.scale / tokens])
    requantize, constants = builder.requantizer(node.name, ratio, outgoing)
    spec = TokenMeanSpec(tokens=tokens, bits=incoming.bits, requantize=requantize)
    builder.emit_narrowed(node, spec, constants | {"zero_in": incoming.zero_point})


def lower_window_bias(builder: ProgramBuilder, node: FloatNode) -> None:
    """Scores and table on grids of their own, the sum on a third."""
    scores, table = (builder.uniform(name) for name in node.inputs)
    outgoing = builder.uniform(node.name)
    rows = builder.add_constants(node.name, [scores, table], outgoing, 1)
    constants = {name: row[0] for name, row in rows.items()}
    offset = int(constants["offset"])
    spec = WindowBiasSpec(
        heads=builder.shapes[node.inputs[0]][-3],
        window=node.attributes["window"],
        score_bits=scores.bits,
        table_bits=table.bits,
        output_bits=outgoing.bits,
        multiplier_bits=builder.widths.multiplier_bits,
        shift_bits=SHIFT_BITS,
        offset_bits=signed_bits(offset, offset),
    )
    builder.emit(node.name, spec, node.inputs, constants)


def lower_shift_mask(builder: ProgramBuilder, node: FloatNode) -> None:
    """Scores that count move up by n * |x0|, so that masked ones lie where i-exp clamps.

    n is the largest number of fraction bits, up to the recipe's, for which the moved scores fit the softmax
    units; the softmax behind takes it from `ProgramBuilder.fraction_bits`.

    Raises
    ------
    HwsimError
        It is too small to make a masked score vanish; names the score scale and what would do.
    """
    scores = builder.uniform(node.inputs[0])
    (softmax,) = (user for user in builder.graph.nodes if node.name in user.inputs)
    attention = builder.grid(softmax.name)
    if isinstance(attention, Log2Grid):
        # The ratio of a row's sum to a clamped exponential is at least 2**n, so its code is at least n.
        needed = min(attention.zero_symbol, PUBLISHED_FRACTION_BITS)
    else:
        # At most 2**-n of the sum, which must round to 0.
        needed = builder.widths.probability_bits + 1
    octave, room = octave_and_room(scores.scale, scores.bits)
    fraction = min(room, max(builder.widths.exponential_fraction_bits, needed), PUBLISHED_FRACTION_BITS)
    if fraction < needed:
        raise HwsimError(
            f"{node.name}: scores of {scores.bits} bits at a scale of {scores.scale:.3g} leave room for {room} octaves "
            f"below them in {WIDEST_SCORE} bits, and a masked score needs {needed}; take fewer score bits"
        )
    offset = fraction * octave
    builder.fraction_bits[node.name] = fraction
    spec = ShiftMaskSpec(bits=scores.bits, output_bits=(scores.highest + offset).bit_length(), **node.attributes)
    builder.emit(node.name, spec, node.inputs, {"offset": offset})
