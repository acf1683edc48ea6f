"""The ports of a Verilog module, as Verilator sees them."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from golden.errors import HwsimError
from rtl.axi import Port
from sim_tests.toolchain import Toolchain


def module_ports(
    texts: Mapping[str, str], top: str, parameters: Mapping[str, str], tools: Toolchain
) -> dict[str, Port]:
    """Ports of a module by name.

    Parameters
    ----------
    texts : mapping of str to str
        Text by file name; ``.v`` and ``.sv`` are read in this order, others can be included.
    top : str
    parameters : mapping of str to str
        Values as Verilog numbers.
    tools : Toolchain

    Raises
    ------
    HwsimError
        A syntax error (with Verilator's line), no such module or parameter, a port of another type than a vector.
    """
    sources = [name for name in texts if Path(name).suffix in (".v", ".sv")]
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            (Path(folder) / name).write_text(text)
        command = [str(tools.verilator), "--json-only", "-Wno-fatal", "-Wno-lint", "-I.", "--Mdir", "out"]
        command += [
            "--prefix",
            "Vtop",
            "--top-module",
            top,
            *(f"-G{name}={value}" for name, value in parameters.items()),
        ]
        done = subprocess.run(
            [*command, *sources], cwd=folder, env=tools.environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise HwsimError(_why(done.stderr, texts, top))
        tree = json.loads((Path(folder) / "out" / "Vtop.tree.json").read_text())
    nodes = list(_nodes(tree))
    types = {node["addr"]: node for node in nodes if str(node.get("type")).endswith("DTYPE")}
    module = next(node for node in nodes if node.get("type") == "MODULE" and node.get("origName") == top)
    ports = [node for node in _nodes(module) if node.get("type") == "VAR" and node.get("varType") == "PORT"]
    return {
        port["origName"]: Port(port["origName"], port["direction"].lower(), _width(types, port["dtypep"], port, top))
        for port in ports
    }


def _why(said: str, texts: Mapping[str, str], top: str) -> str:
    """Verilator's first error in one sentence."""
    if "was not found in design" in said:
        found = [name for text in texts.values() for name in re.findall(r"^\s*module\s+(\w+)", text, re.MULTILINE)]
        known = ", ".join(found) or "none"
        return f"there is no module {top} in {', '.join(texts)}; there are {known}; name one with --top"
    if match := re.search(r"Parameters from the command line were not found in the design: (.*)", said):
        return f"module {top} has no parameter {match[1]}; correct [parameters] of the map"
    first = next((line for line in said.splitlines() if line.startswith("%Error")), said.strip() or "it says nothing")
    return f"Verilator does not accept the Verilog: {first.removeprefix('%').strip()}"


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _width(types: Mapping[str, dict[str, Any]], address: str, port: Mapping[str, Any], top: str) -> int:
    """Bits of a type; of packed arrays, the product."""
    node = types.get(address, {})
    if node.get("type") == "REFDTYPE":
        return _width(types, node["refDTypep"], port, top)
    if node.get("type") == "PACKARRAYDTYPE":
        return _bits(node["declRange"].strip("[]")) * _width(types, node["refDTypep"], port, top)
    if node.get("type") == "BASICDTYPE" and node.get("keyword") in (
        "logic",
        "bit",
        "int",
        "integer",
        "byte",
        "shortint",
    ):
        return _bits(node["range"]) if "range" in node else 1
    raise HwsimError(f"port {port['origName']} of {top} is no vector of bits; give the unit plain vectors as ports")


def _bits(span: str) -> int:
    high, low = (int(end) for end in span.split(":"))
    return abs(high - low) + 1
