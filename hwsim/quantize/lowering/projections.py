"""Joint projections whose parts need codes of different widths, as a layer for each part.

With an IRM (`hwsim.quantize.q_vit`) the values of a joint projection have the codes of the recipe, while queries and
keys are carried in wide ones to a LayerNorm. One linear unit has one output width, so the rows of the projection
become three units: the same products, in the same order. Queries and keys each have the range that they were observed
in: that of the whole projection may be the values', and would waste codes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hwsim.networks.graph import FloatNode
from hwsim.quantize.calibrate import Calibration
from hwsim.quantize.q_vit import rectified_parts
from hwsim.quantize.weights import QuantizedWeight


def part_name(projection: str, part: str) -> str:
    """Name of the layer of a part: ``blocks.0.attn.qkv`` and ``blocks.0.attn.q`` give ``blocks.0.attn.qkv.q``."""
    return f"{projection}.{part.rpartition('.')[2]}"


def split_projections(calibration: Calibration) -> Calibration:
    """A calibration in which a layer reads each part of a projection that is quantized in part, the same network.

    Parameters
    ----------
    calibration : Calibration
        Comes back as it is where no projection is.
    """
    graph = calibration.graph
    users: dict[str, list[FloatNode]] = {}
    for node in graph.nodes:
        if node.operation == "split_heads":
            users.setdefault(node.inputs[0], []).append(node)
    mixed = {
        name: parts
        for name, parts in users.items()
        if graph[name].operation == "linear" and len({part.name in calibration.grids for part in parts}) == 2
    }
    weights, ranges = dict(calibration.weights), dict(calibration.ranges)
    of_parts = {name: ranges.pop(name) for name in rectified_parts(graph) if name in ranges}
    if not mixed:
        # What stays joint is carried as a whole.
        return replace(calibration, ranges=ranges) if of_parts else calibration
    nodes: list[FloatNode] = []
    for node in graph.nodes:
        if node.name in mixed:
            weight = weights.pop(node.name)
            observed = ranges.pop(node.name, None)
            for part in mixed[node.name]:
                name = part_name(node.name, part.name)
                rows = _rows(part, len(weight.codes))
                parameters = {key: array[rows] for key, array in node.parameters.items()}
                nodes.append(replace(node, name=name, parameters=parameters))
                zero_point = None if weight.zero_point is None else weight.zero_point[rows]
                weights[name] = QuantizedWeight(weight.codes[rows], weight.scale[rows], weight.bits, zero_point)
                if observed is not None and part.name not in calibration.grids:
                    # Files of earlier versions have the range of the whole alone.
                    ranges[name] = of_parts.get(part.name, observed)
        elif node.operation == "split_heads" and node.inputs[0] in mixed:
            attributes = {**node.attributes, "part": 0, "parts": 1}
            nodes.append(replace(node, inputs=(part_name(node.inputs[0], node.name),), attributes=attributes))
        else:
            nodes.append(node)
    return replace(calibration, graph=replace(graph, nodes=tuple(nodes)), weights=weights, ranges=ranges)


def _rows(part: FloatNode, outputs: int) -> np.ndarray:
    """Rows of a joint projection that a part reads."""
    rows: np.ndarray = np.arange(outputs).reshape(part.attributes["parts"], -1)[part.attributes["part"]]
    return rows
