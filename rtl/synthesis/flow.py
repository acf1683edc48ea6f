"""Synthesis, place and route of one module: cells, and the clock of several placements.

Every point is kept in a file named by what it depends on (the Verilog, the family, the commands and the
versions of the tools), as soon as it is known: a second run only reads, and a broken one goes on.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golden.errors import HwsimError
from golden.files import write_atomically
from rtl import fpga_tools
from rtl.stream import StreamUnit
from rtl.synthesis import boundary
from rtl.synthesis.families import Family
from rtl.verilog import export

# What nextpnr places for. Its placements do not depend on it at these speeds; a report only says pass or fail.
_PLACED_FOR_MHZ = "150"
_USED = re.compile(r"^Info:\s+(\w+):\s+(\d+)/\s*(\d+)\s+\d+%", re.MULTILINE)
_FULL = ("no BELs remaining", "Unable to find legal placement", "Unable to place cell", "placement failed")


class DoesNotFit(HwsimError):
    """A module needs more than the device has."""


@dataclass(frozen=True)
class Implementation:
    """A module on a family.

    Attributes
    ----------
    family : Family
    cells : dict of str to int
        By resource, of the module alone.
    fmax : dict of int to float
        Clock in MHz by seed, from register to register; empty for a family that is only counted.
    """

    family: Family
    cells: dict[str, int]
    fmax: dict[int, float]

    @property
    def median_mhz(self) -> float | None:
        return statistics.median(self.fmax.values()) if self.fmax else None

    @property
    def range_mhz(self) -> tuple[float, float] | None:
        """Slowest and fastest seed."""
        return (min(self.fmax.values()), max(self.fmax.values())) if self.fmax else None


def tool_versions(family: Family) -> dict[str, str]:
    """Packages and versions of the tools that a family needs.

    Raises
    ------
    HwsimError
        One is missing.
    """
    place = family.place_and_route
    return {tool: fpga_tools.version(tool) for tool in ("yosys", *([place.tool] if place else []))}


def implement(
    verilog: str,
    module: str,
    family: Family,
    *,
    seeds: Sequence[int] = (),
    folder: Path,
    done: Callable[[], None] = lambda: None,
) -> Implementation:
    """Count the cells of a module and place and route it with every seed.

    Parameters
    ----------
    verilog : str
    module : str
        Its name.
    family : Family
    seeds : sequence of int
        Of the placements; ignored for a family without place and route.
    folder : Path
        Where finished points are kept.
    done : callable
        Called when the cells are known and after every seed, also of points that were kept.

    Raises
    ------
    DoesNotFit
        Names the resource; what was counted stays known.
    HwsimError
        A tool is missing or fails.
    """
    place = family.place_and_route
    wanted = list(seeds) if place else []
    key = _key(verilog, module, family)
    kept_at = folder / f"{module}-{family.name}-{key}.json"
    kept = _read(kept_at)
    missing = [seed for seed in wanted if str(seed) not in kept["fmax"]]
    for _ in range(len(wanted) - len(missing) + bool(kept["cells"])):
        done()
    if not kept["cells"] or missing:
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{module}-", dir=folder))
        try:
            if not kept["cells"]:
                kept["cells"] = _count(verilog, module, family, work)
                write_atomically(kept_at, json.dumps(kept, indent=1) + "\n")
                done()
            _check_fit(kept["cells"], module, family)
            if place and not place.out_of_context and missing:
                _synthesise(verilog + boundary.wrap(verilog, module), boundary.TOP, family, work)
            elif missing and not (work / "netlist.json").exists():
                _synthesise(verilog, module, family, work)
            for seed in missing:
                kept["fmax"][str(seed)] = _place(module, family, seed, work)
                write_atomically(kept_at, json.dumps(kept, indent=1) + "\n")
                done()
        finally:
            shutil.rmtree(work, ignore_errors=True)
    _check_fit(kept["cells"], module, family)
    cells = {name: used for name, (used, _) in kept["cells"].items()}
    return Implementation(family, cells, {seed: kept["fmax"][str(seed)] for seed in wanted})


def count_cells(unit: StreamUnit, family: Family, *, folder: Path) -> dict[str, int]:
    """Cells of a unit by resource, without a placement.

    Raises
    ------
    HwsimError
        A tool is missing or fails, or the unit does not fit.
    """
    kind = unit.spec.kind
    return implement(export(unit, kind), kind, family, folder=folder).cells


def check_target(implementation: Implementation, target_mhz: float, what: str) -> None:
    """Refuse an implementation whose median clock is below a target.

    Raises
    ------
    HwsimError
        Says both clocks, or that the family is only counted.
    """
    median = implementation.median_mhz
    if median is None:
        raise HwsimError(
            f"{implementation.family.name} gives cell counts and no clock; ask for a target with another family"
        )
    if median < target_mhz:
        raise HwsimError(
            f"{what} misses the target: median {median:.1f} MHz on {implementation.family.part}, "
            f"{target_mhz:g} MHz asked for; use fewer lanes or a lower target"
        )


def _key(verilog: str, module: str, family: Family) -> str:
    place = family.place_and_route
    parts = [
        module,
        family.preparation,
        family.synthesis,
        *sorted(f"{tool} {text}" for tool, text in tool_versions(family).items()),
    ]
    if place:
        parts += [
            place.tool,
            *place.arguments,
            json.dumps(dict(place.bels)),
            _PLACED_FOR_MHZ,
            str(place.out_of_context),
        ]
        parts += [] if place.out_of_context else [boundary.wrap(verilog, module)]
    else:
        parts.append(json.dumps({name: dict(types) for name, types in family.cells.items()}))
    return hashlib.sha256("\n".join([*parts, verilog]).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    """A kept point; an empty one if there is none or it cannot be read."""
    try:
        kept = json.loads(path.read_text())
        return {"cells": dict(kept["cells"]), "fmax": dict(kept["fmax"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"cells": {}, "fmax": {}}


def _synthesise(verilog: str, top: str, family: Family, work: Path) -> None:
    (work / "source.v").write_text(verilog)
    script = f"read_verilog source.v; {family.preparation}{family.synthesis} -top {top}; write_json netlist.json; "
    script += "tee -q -o stat.json stat -json"
    if fpga_tools.run("yosys", ["-q", "-p", script], work, "yosys.log"):
        raise HwsimError(f"synthesis of {top} for {family.name} failed: {_complaint(work / 'yosys.log')}")


def _count(verilog: str, module: str, family: Family, work: Path) -> dict[str, tuple[int, int | None]]:
    """Cells used, and those that the device has, by resource."""
    _synthesise(verilog, module, family, work)
    place = family.place_and_route
    (found,) = json.loads((work / "stat.json").read_text())["modules"].values()
    types = found["num_cells_by_type"]
    if place is None:
        unknown = set(types).difference(family.uncounted, *family.cells.values())
        if unknown:
            raise RuntimeError(f"{module} has cells that {family.name} does not count: {', '.join(sorted(unknown))}")
        return {
            name: (sum(count * types.get(cell, 0) for cell, count in worth.items()), None)
            for name, worth in family.cells.items()
        }
    arguments = [*place.arguments, "--json", "netlist.json", "--pack-only"]
    if place.out_of_context:
        arguments.append("--out-of-context")
    if fpga_tools.run(place.tool, arguments, work, "pack.log"):
        raise HwsimError(f"packing {module} for {family.part} failed: {_complaint(work / 'pack.log')}")
    used = {name: (int(count), int(there)) for name, count, there in _USED.findall((work / "pack.log").read_text())}
    return {name: used.get(bel, (types.get(place.blocks.get(name), 0), 0)) for name, bel in place.bels.items()}


def _check_fit(cells: dict[str, Any], module: str, family: Family) -> None:
    for name, (used, there) in cells.items():
        if there is not None and used > there:
            raise DoesNotFit(
                f"{module} does not fit into {family.part}: it needs {used:,} {name}, there are {there:,}; "
                "use fewer lanes or another family"
            )


def _place(module: str, family: Family, seed: int, work: Path) -> float:
    """Clock in MHz of one placement."""
    place = family.place_and_route
    assert place is not None
    arguments = [*place.arguments, "--json", "netlist.json", "--seed", str(seed), "--freq", _PLACED_FOR_MHZ]
    arguments += ["--timing-allow-fail", "--report", "report.json"]
    if place.out_of_context:
        arguments.append("--out-of-context")
    if fpga_tools.run(place.tool, arguments, work, "place.log"):
        said = _complaint(work / "place.log")
        if any(text in said for text in _FULL):
            raise DoesNotFit(f"{module} does not fit into {family.part}: {said}; use fewer lanes or another family")
        raise HwsimError(f"place and route of {module} on {family.part} failed with seed {seed}: {said}")
    clocks = json.loads((work / "report.json").read_text())["fmax"]
    if not clocks:
        raise HwsimError(f"{module} has no path from register to register, so no clock; count its cells only")
    return min(clock["achieved"] for clock in clocks.values())


def _complaint(log: Path) -> str:
    """First line of a log that names an error, or else its last one."""
    lines = [line.strip() for line in log.read_text().splitlines() if line.strip()]
    return next((line for line in lines if "ERROR" in line or "rror:" in line), lines[-1])
