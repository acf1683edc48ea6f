"""The measured points as data frame, JSON and Markdown, with the tools that measured them and what others reach."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rtl.stream import StreamUnit
from rtl.synthesis.flow import Implementation, tool_versions
from rtl.synthesis.standard import Point

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Measured:
    """A configuration with its unit and what came out, by family."""

    point: Point
    unit: StreamUnit
    implementations: Mapping[str, Implementation]

    @property
    def name(self) -> str:
        return f"{self.point.unit} ({self.point.widths}), row {self.point.row}, {self.point.lanes} lanes"


@dataclass(frozen=True)
class Peer:
    """Somebody else's unit, measured with the same tools, part and options, median of five seeds.

    Attributes
    ----------
    source : str
    unit : str
    elements_a_cycle : float
    cells : dict of str to int
        Of the family ecp5.
    median_mhz : float
    range_mhz : tuple of float, optional
    """

    source: str
    unit: str
    elements_a_cycle: float
    cells: Mapping[str, int]
    median_mhz: float
    range_mhz: tuple[float, float] | None = None


def _peer_cells(comb: int, ff: int, mult18: int, dp16kd: int) -> dict[str, int]:
    return {"COMB": comb, "FF": ff, "MULT18": mult18, "DP16KD": dp16kd}


PEERS = (
    Peer(
        "HG-PIPE (HLS Verilog)", "softmax, 196 tokens, 10 -> 3 bit", 0.667,
        _peer_cells(825, 486, 2, 2), 70.1, (69.8, 71.0),
    ),
    Peer(
        "HG-PIPE (HLS Verilog)", "LayerNorm, 192 channels, 13 bit in", 0.667,
        _peer_cells(1562, 990, 10, 2), 106.1, (103.7, 108.2),
    ),
    Peer("ITA", "GELU", 1.0, _peer_cells(242, 76, 3, 0), 62.5),
    Peer("fused QK-softmax CRN4X", "softmax, rows of 256", 0.06, _peer_cells(5088, 3438, 2, 0), 25.4),
)  # fmt: skip


def frame(measured: Sequence[Measured]) -> pd.DataFrame:
    """One row a configuration and family; clocks in MHz, cells by resource, NaN where a family has no such thing."""
    import pandas as pd

    rows = []
    for each in measured:
        for implementation in each.implementations.values():
            slowest, fastest = implementation.range_mhz or (None, None)
            rows.append(
                {
                    "unit": each.point.unit,
                    "widths": each.point.widths,
                    "row": each.point.row,
                    "lanes": each.point.lanes,
                    "elements_a_cycle": each.point.elements_a_cycle(each.unit),
                    "latency": each.unit.latency,
                    "family": implementation.family.name,
                    **implementation.cells,
                    "median_mhz": implementation.median_mhz,
                    "slowest_mhz": slowest,
                    "fastest_mhz": fastest,
                    "seeds": len(implementation.fmax),
                }
            )
    return pd.DataFrame(rows)


def _facts(measured: Sequence[Measured]) -> dict[str, Any]:
    families = {name: each.family for m in measured for name, each in m.implementations.items()}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "families": {
            name: {"part": family.part, "synthesis": family.synthesis, "tools": tool_versions(family)}
            for name, family in families.items()
        },
    }


def to_json(measured: Sequence[Measured]) -> str:
    """Everything as JSON: the facts, the points with the clock of every seed, the peers."""
    points = [
        {
            "unit": each.point.unit,
            "widths": each.point.widths,
            "row": each.point.row,
            "lanes": each.point.lanes,
            "elements_a_cycle": each.point.elements_a_cycle(each.unit),
            "latency": each.unit.latency,
            "families": {
                name: {"cells": found.cells, "fmax_mhz": found.fmax} for name, found in each.implementations.items()
            },
        }
        for each in measured
    ]
    peers = [
        {
            "source": peer.source,
            "unit": peer.unit,
            "elements_a_cycle": peer.elements_a_cycle,
            "cells": dict(peer.cells),
            "median_mhz": peer.median_mhz,
            "range_mhz": peer.range_mhz,
        }
        for peer in PEERS
    ]
    return json.dumps({**_facts(measured), "points": points, "peers": peers}, indent=1) + "\n"


def to_markdown(measured: Sequence[Measured], command: str) -> str:
    """The page: how it was measured, a table a family, what others reach."""
    facts = _facts(measured)
    lines = [f"Measured {facts['date']} with `{command}`.", ""]
    for name, family in facts["families"].items():
        found = [(each, each.implementations[name]) for each in measured if name in each.implementations]
        tools = ", ".join(f"{tool} {text}" for tool, text in family["tools"].items())
        lines += [f"## {name}: {family['part']}", "", f"`{family['synthesis']}`; {tools}.", ""]
        lines += _family_table(found)
        if name == "ecp5":
            lines += ["", "What others reach with the same tools, part and options:", ""]
            lines += _peer_table()
        lines.append("")
    return "\n".join(lines)


def _family_table(found: Sequence[tuple[Measured, Implementation]]) -> list[str]:
    family = found[0][1].family
    timed = any(implementation.fmax for _, implementation in found)
    columns = ["unit", "row", "lanes", "elements a cycle", *family.resources, f"{family.resources[0]} a lane"]
    columns += ["Fmax MHz"] if timed else []
    lines = _header(columns, text=1)
    for each, implementation in found:
        point, cells = each.point, implementation.cells
        values = [f"{point.unit}, {point.widths}", point.row, point.lanes, f"{point.elements_a_cycle(each.unit):.3g}"]
        values += [f"{cells[name]:,}" for name in family.resources]
        values.append(f"{cells[family.resources[0]] / point.lanes:,.0f}")
        if timed:
            values.append(_clock(implementation.median_mhz, implementation.range_mhz))
        lines.append(_line(values))
    return lines


def _peer_table() -> list[str]:
    resources = list(PEERS[0].cells)
    lines = _header(["source", "unit", "elements a cycle", *resources, "Fmax MHz"], text=2)
    for peer in PEERS:
        cells = [f"{peer.cells[name]:,}" for name in resources]
        clock = _clock(peer.median_mhz, peer.range_mhz)
        lines.append(_line([peer.source, peer.unit, f"{peer.elements_a_cycle:.3g}", *cells, clock]))
    return lines


def _clock(median: float | None, spread: tuple[float, float] | None) -> str:
    if median is None:
        return ""
    return f"{median:.1f}" + (f" ({spread[0]:.1f}-{spread[1]:.1f})" if spread else "")


def _header(columns: Sequence[str], text: int) -> list[str]:
    return [_line(columns), "|" + "---|" * text + "--:|" * (len(columns) - text)]


def _line(values: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, values)) + " |"
