"""Carriers: codes of the points that a recipe leaves in float.

The published systems quantize the operands of matrix products, and some of them
nothing else. An integer program needs codes everywhere: at these points it has
uniform codes, wide enough not to matter. Nothing clips such a point in the
fake-quantized network, so its codes reach beyond what the calibration images
showed: a residual sum or a score of another image that is clipped is an error
that no number of bits makes good.
"""

from __future__ import annotations

import math

import torch

from golden.log_softmax import EXP_LN2
from hwsim.quantize.calibrate import Calibration
from hwsim.quantize.lowering.masks import octave_and_room
from hwsim.quantize.q_vit import irm_nodes
from hwsim.quantize.quantizers.protocol import Grid
from hwsim.quantize.quantizers.uniform import UniformGrid, asymmetric_grid

# Of the observed extent, what the codes reach beyond it on each side: twice the range, one bit.
MARGIN = 0.5
SCORES = ("scores", "biased scores")
# Keeps the octave of a score scale at its whole number of steps through the rounding to float32.
ABOVE_ROUNDING = 1 + 2.0**-20


def carrier_grids(calibration: Calibration) -> dict[str, Grid]:
    """Grids of the points that have a role but no quantizer, at the widths of the recipe's lowering."""
    graph, widths = calibration.graph, calibration.recipe.lowering
    special = {"hidden": widths.hidden_bits, **dict.fromkeys(SCORES, widths.score_bits)}
    masked = {node.inputs[0] for node in graph.nodes if node.operation == "shift_mask"}
    rectified = {graph.source(graph[name].inputs[0]).name for name in irm_nodes(graph)}
    grids: dict[str, UniformGrid] = {}
    for name, observed in calibration.ranges.items():
        low, high = _with_margin(*observed)
        bits = widths.irm_bits if name in rectified else special.get(graph[name].role, widths.carrier_bits)
        if graph[name].operation == "layernorm":
            bits = min(bits, widths.gamma_bits)  # finer codes than gamma would say nothing more
        new = _score_grid if graph[name].role in SCORES else _uniform
        grids[name] = new(low, high, bits)
        # The widest codes that leave room for a mask; with none, the lowering of the mask refuses them.
        while name in masked and bits > 2 and octave_and_room(grids[name].scale, bits)[1] <= widths.probability_bits:
            bits -= 1
            grids[name] = new(low, high, bits)
    for node in graph.nodes:
        if node.operation == "gelu" and node.inputs[0] in calibration.ranges:
            output: Grid = {**grids, **calibration.grids}[node.name]
            observed = calibration.ranges[node.inputs[0]]
            grids[node.inputs[0]] = gelu_input_grid(*observed, output, widths.hidden_bits)
        if node.operation == "concat" and {node.name, node.inputs[1]} <= grids.keys():
            # The sequence is part of the whole; on one grid it needs no table of 2^carrier_bits entries to get there.
            grids[node.inputs[1]] = grids[node.name]
    return dict(grids)


def gelu_input_grid(low: float, high: float, output: Grid, bits: int) -> UniformGrid:
    """The grid of the GELU table's input, `bits` wide: the observed range with 0 in it, up to the output's last code.

    Above, saturating changes no code. Below, the range is cut where GELU has died out: from there on it stays
    within a quarter of an output step of 0, with room for the rounding of the zero point.
    """
    step = smallest_step(output)
    cut = -10.0
    while cut < -0.76 and abs(gelu(cut + 1 / 64)) < step / 4:
        cut += 1 / 64
    return _uniform(max(min(low, 0.0), cut), max(high, step, last_code_begins(output)), bits)


def last_code_begins(output: Grid) -> float:
    """An input of GELU, a 64th too large at most, above which its output has one code."""
    values = output.values(torch.arange(1 << output.bits, dtype=torch.float32)).sort().values
    threshold = float(values[-1] + values[-2]) / 2
    x = max(threshold, 0.0)
    while gelu(x) < threshold:
        x += 1 / 64
    return x


def _score_grid(low: float, high: float, bits: int) -> UniformGrid:
    """Codes of scores in steps of which an octave of i-exp has a whole number.

    i-exp rounds the steps of an octave up. With a part of a step left over, its error would grow with every
    octave below the maximum, and the softmax come out too flat.
    """
    steps = math.floor(EXP_LN2 / _uniform(low, high, bits).scale)
    if steps:
        high = low + ((1 << bits) - 1) * (EXP_LN2 / steps * ABOVE_ROUNDING)
    return _uniform(low, high, bits)


def _with_margin(low: float, high: float) -> tuple[float, float]:
    return low - MARGIN * (high - low), high + MARGIN * (high - low)


def _uniform(low: float, high: float, bits: int) -> UniformGrid:
    return UniformGrid(*asymmetric_grid(torch.tensor(low), torch.tensor(high), bits), bits)


def smallest_step(grid: Grid) -> float:
    """Distance of the code of 0 to the next one."""
    zero = grid.codes(torch.zeros(1))
    here = grid.values(zero)
    steps = [float(abs(grid.values(zero + side) - here)) for side in (-1, 1)]
    # Of a logarithmic grid the code of 0 may be the first or the last one.
    return min(step for step in steps if step > 0)


def gelu(x: float) -> float:
    """``x * Phi(x)``."""
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))
