"""Carriers: codes of the points that a recipe leaves in float.

The published systems quantize the operands of matrix products, and some of them
nothing else. An integer program needs codes everywhere: at these points it has
uniform codes of the observed range, wide enough not to matter.
"""

from __future__ import annotations

import math

import torch

from hwsim.quantize.calibrate import Calibration
from hwsim.quantize.lowering.masks import octave_and_room
from hwsim.quantize.quantizers.protocol import Grid
from hwsim.quantize.quantizers.uniform import UniformGrid, asymmetric_grid


def carrier_grids(calibration: Calibration) -> dict[str, Grid]:
    """Grids of the points that have a role but no quantizer, at the widths of the recipe's lowering."""
    graph, widths = calibration.graph, calibration.recipe.lowering
    special = {"hidden": widths.hidden_bits, "scores": widths.score_bits, "biased scores": widths.score_bits}
    masked = {node.inputs[0] for node in graph.nodes if node.operation == "shift_mask"}
    grids: dict[str, UniformGrid] = {}
    for name, (low, high) in calibration.ranges.items():
        bits = special.get(graph[name].role, widths.carrier_bits)
        if graph[name].operation == "layernorm":
            bits = min(bits, widths.gamma_bits)  # finer codes than gamma would say nothing more
        grids[name] = _uniform(low, high, bits)
        # The widest codes that leave room for a mask; with none, the lowering of the mask refuses them.
        while name in masked and bits > 2 and octave_and_room(grids[name].scale, bits)[1] <= widths.probability_bits:
            bits -= 1
            grids[name] = _uniform(low, high, bits)
    for node in graph.nodes:
        if node.operation == "gelu" and node.inputs[0] in calibration.ranges:
            output: Grid = {**grids, **calibration.grids}[node.name]
            low, high = calibration.ranges[node.inputs[0]]
            grids[node.inputs[0]] = gelu_input_grid(low, high, output, widths.hidden_bits)
    return dict(grids)


def gelu_input_grid(low: float, high: float, output: Grid, bits: int) -> UniformGrid:
    """The grid of the GELU table's input, `bits` wide: the observed range with 0 in it, cut where GELU has died out.

    Below the cut GELU stays within a quarter of an output step of 0: saturating there keeps every code,
    with room for the rounding of the zero point.
    """
    step = smallest_step(output)
    low, high = min(low, 0.0), max(high, step)
    cut = -10.0
    while cut < -0.76 and abs(gelu(cut + 1 / 64)) < step / 4:
        cut += 1 / 64
    return _uniform(max(low, cut), high, bits)


def _uniform(low: float, high: float, bits: int) -> UniformGrid:
    return UniformGrid(*asymmetric_grid(torch.tensor(low), torch.tensor(high), bits), bits)


def smallest_step(grid: Grid) -> float:
    """Distance of the code of 0 to the next one."""
    zero = grid.codes(torch.zeros(1))
    below, above = grid.values(zero - 1), grid.values(zero + 1)
    return float(min(abs(below - grid.values(zero)), abs(above - grid.values(zero))))


def gelu(x: float) -> float:
    """``x * Phi(x)``."""
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))
