"""Lowering: from a calibrated network to the integer program.

Each float node becomes the unit of the same name; where a unit needs a second
one in front (a probability before its quantizer, patches moved to the grid of
the token sequence), that one's name has a suffix.

Every operation of the float graph has one function here, registered in `LOWERINGS`;
quantizers whose codes are not uniform bring their units themselves
(`hwsim.quantize.quantizers`).
"""

from __future__ import annotations

from collections.abc import Callable

from golden.errors import HwsimError
from hwsim.networks.graph import FloatNode
from hwsim.program import Program
from hwsim.quantize.calibrate import Calibration
from hwsim.quantize.lowering import movement, products, rows, tables, windows
from hwsim.quantize.lowering.builder import ProgramBuilder
from hwsim.quantize.lowering.projections import split_projections

LOWERINGS: dict[str, Callable[[ProgramBuilder, FloatNode], None]] = {
    "image": tables.lower_image,
    "gelu": tables.lower_gelu,
    "constant": tables.lower_constant,
    "concat": tables.lower_concat,
    "linear": products.lower_linear,
    "matmul": products.lower_matmul,
    "add": rows.lower_add,
    "layernorm": rows.lower_layernorm,
    "softmax": rows.lower_softmax,
    "patches": movement.lower_patches,
    "split_heads": movement.lower_split_heads,
    "merge_heads": movement.lower_merge_heads,
    "transpose": movement.lower_transpose,
    "take_token": movement.lower_take_token,
    "join_tokens": windows.lower_join_tokens,
    "token_mean": windows.lower_token_mean,
    "partition_windows": windows.lower_partition_windows,
    "join_windows": windows.lower_join_windows,
    "merge_patches": windows.lower_merge_patches,
    "window_bias": windows.lower_window_bias,
    "shift_mask": windows.lower_shift_mask,
}


def lower(calibration: Calibration) -> Program:
    """The integer program of a calibrated network.

    Raises
    ------
    HwsimError
        A ratio of scales out of reach of the multiplier width, an accumulator that could
        overflow at the width of the recipe, or an operation without an integer form; names the layer.
    """
    builder = ProgramBuilder(split_projections(calibration))
    names = {node.name for node in builder.graph.nodes}
    for node in builder.graph.nodes:
        if node.operation not in LOWERINGS:
            raise HwsimError(f"{node.name}: a {node.operation} has no integer form in this package")
        try:
            LOWERINGS[node.operation](builder, node)
        except HwsimError as error:
            if str(error).split(":")[0] in names:
                raise
            # A spec does not know whose it is.
            raise HwsimError(f"{node.name}: {error}") from None
    return builder.program()
