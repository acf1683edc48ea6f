"""The cost of a program as plain values, for tables, JSON and CSV."""

from __future__ import annotations

from typing import Any

from hwsim.cost.cycles import Cycles
from hwsim.cost.fixops import fixops
from hwsim.cost.memory import ConstantBytes, activations, constant_bytes
from hwsim.cost.operations import node_operations, total
from hwsim.program import Program


def program_report(program: Program, spent: Cycles) -> dict[str, Any]:
    """Operations, bytes, FixOPs and cycles of a program, as JSON values.

    Parameters
    ----------
    spent : Cycles
        Of the program on an accelerator.
    """
    operations = total(list(node_operations(program).values()))
    constants = sum((constant_bytes(node) for node in program.nodes), ConstantBytes())
    live = activations(program)
    peak_at, peak = live.peak
    accelerator = spent.accelerator
    return {
        "network": program.network,
        "recipe": program.recipe,
        "operations": [{"kind": each.kind, "widths": list(each.widths), "count": each.count} for each in operations],
        "fixops": float(fixops(operations)),
        "bytes": {
            "weights": constants.weights,
            "biases": constants.biases,
            "tables": constants.tables,
            "other_constants": constants.other,
            "all_constants": constants.total,
            "all_activations": sum(live.outputs.values()),
            "peak_activations": peak,
        },
        "peak_at": peak_at,
        "accelerator": {
            "array": [accelerator.array_rows, accelerator.array_columns],
            "mac_bits": accelerator.mac_bits,
            "lanes": accelerator.lanes,
            "lanes_of": dict(accelerator.lanes_of),
            "memory_bytes": accelerator.memory_bytes,
            "bandwidth": accelerator.bandwidth,
            "clock_mhz": accelerator.clock_mhz,
        },
        "cycles": spent.cycles,
        "frames_a_second": spent.frames_a_second,
        "bound": spent.bound,
        "traffic": spent.traffic,
        "constants_resident": spent.resident,
        "units": _by_unit(spent),
    }


def _by_unit(spent: Cycles) -> list[dict[str, Any]]:
    """Cycles by kind of unit, most first."""
    kinds = dict.fromkeys(layer.unit for layer in spent.layers)
    found = []
    for kind in kinds:
        layers = [layer for layer in spent.layers if layer.unit == kind]
        cycles = sum(layer.cycles for layer in layers)
        found.append(
            {
                "unit": kind,
                "layers": len(layers),
                "cycles": cycles,
                "percent": 100 * cycles / spent.cycles,
                "memory_bound": sum(layer.bound == "memory" for layer in layers),
                "basis": layers[0].basis,
            }
        )
    return sorted(found, key=lambda each: -each["cycles"])


def layer_lines(program: Program, spent: Cycles) -> list[dict[str, Any]]:
    """One record a layer: cycles, traffic, products, FixOPs and constant bytes."""
    operations = node_operations(program)
    lines = []
    for layer in spent.layers:
        constants = constant_bytes(program[layer.name])
        lines.append(
            {
                "layer": layer.name,
                "unit": layer.unit,
                "compute": layer.compute,
                "memory": layer.memory,
                "cycles": layer.cycles,
                "bound": layer.bound,
                "basis": layer.basis,
                "read": layer.read,
                "written": layer.written,
                "fixops": float(fixops(operations[layer.name])),
                "operations": sum(each.count for each in operations[layer.name]),
                "constant_bytes": constants.total,
            }
        )
    return lines
