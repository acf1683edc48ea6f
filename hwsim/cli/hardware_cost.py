"""Cycles and area of a program from the units of `rtl`: what `hwsim.cost` cannot import."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hwsim.cost.accelerator import Accelerator
from hwsim.cost.cycles import ELEMENTWISE, Cycles, UnitCycles, cycles
from hwsim.cost.operations import input_shapes
from hwsim.cost.report import program_report
from hwsim.explore.records import WITHOUT_HARDWARE
from hwsim.identity import code_digest
from hwsim.program import Program
from hwsim.unit_vectors import UnitLayer, requantizer_layers, unit_layers
from rtl import catalog
from rtl.allocation import Allocated, Layer, allocate, area, requantizer
from rtl.synthesis import families
from rtl.synthesis.families import Family

# Of every program; cells come on top.
COST_NAMES = (
    "weight_bytes",
    "table_bytes",
    "constant_bytes",
    "activation_bytes",
    "operations",
    "fixops",
    "cycles",
    "frames_a_second",
    "traffic_bytes",
)


@dataclass(frozen=True)
class Hardware:
    """The units of a program.

    Attributes
    ----------
    units, requantizers : tuple of Allocated
        Of layers that are a unit, and of those behind sums.
    """

    units: tuple[Allocated, ...]
    requantizers: tuple[Allocated, ...]

    @property
    def all(self) -> tuple[Allocated, ...]:
        return (*self.units, *self.requantizers)


@dataclass(frozen=True)
class UnitArea:
    """Cells of one unit.

    Attributes
    ----------
    kind : str
    lanes, layers : int
        Its lanes, and how many layers it serves.
    cells : mapping of str to int
        By resource of the family.
    """

    kind: str
    lanes: int
    layers: int
    cells: Mapping[str, int]


def hardware_of(program: Program, accelerator: Accelerator) -> Hardware:
    """The loadable units that serve all layers of a program.

    Raises
    ------
    HwsimError
        A unit cannot be built.
    """
    layers = [
        Layer(node.name, node.spec, node.constants, tuple(input_shapes(program, node)))
        for node in program.nodes
        if node.inputs
    ]
    behind = [requantizer(layer, program.shape(layer.name)) for layer in layers]
    return Hardware(
        tuple(allocate(layers, accelerator.lanes_for)),
        tuple(allocate([layer for layer in behind if layer is not None], accelerator.lanes_for)),
    )


@dataclass(frozen=True)
class Module:
    """A unit of a program's hardware and all that it is loaded with.

    Attributes
    ----------
    name : str
        The unit's kind, numbered where there are several of it.
    lanes : int
    layers : tuple of UnitLayer
    """

    name: str
    lanes: int
    layers: tuple[UnitLayer, ...]


def hardware_modules(program: Program, hardware: Hardware) -> list[Module]:
    """The modules that `hardware_of` counts, in the order of `Hardware.all`."""
    kinds = [each.kind for each in hardware.all]
    nodes = {node.name: node for node in program.nodes}
    makers: list[Callable[..., list[UnitLayer]]] = [unit_layers] * len(hardware.units)
    makers += [requantizer_layers] * len(hardware.requantizers)
    modules = []
    for place, (each, maker) in enumerate(zip(hardware.all, makers, strict=True)):
        number = f"_{kinds[:place].count(each.kind) + 1}" if kinds.count(each.kind) > 1 else ""
        own = [nodes[layer.name] for layer in each.layers]
        loaded = [layer for node in own for layer in maker(node.name, node.spec, node.constants)]
        # A decoder stands beside some products; it is no unit of its own here.
        served = tuple(layer for layer in loaded if layer.spec.kind == each.kind)
        assert {catalog.group_key(layer.spec) for layer in served} == {catalog.group_key(each.unit.spec)}
        modules.append(Module(each.kind + number, each.unit.lanes, served))
    return modules


def unit_cycles(allocated: Sequence[Allocated]) -> dict[str, UnitCycles]:
    """Cycles of every layer of some units, by its name."""
    return {
        layer.name: UnitCycles(each.cycles(layer), each.latency(layer)) for each in allocated for layer in each.layers
    }


def program_cycles(program: Program, accelerator: Accelerator) -> Cycles:
    """Cycles of a program on an accelerator, with the cycles of its units; see `hwsim.cost.cycles.cycles`.

    Raises
    ------
    HwsimError
        A unit cannot be built, or the memory on the chip is too small.
    """
    hardware = hardware_of(program, accelerator)
    return cycles(program, accelerator, unit_cycles(hardware.units), unit_cycles(hardware.requantizers))


def program_area(hardware: Hardware, family: Family, folder: Path) -> list[UnitArea]:
    """Cells of every unit, counted by Yosys or read from the folder where a count was kept.

    Raises
    ------
    HwsimError
        A tool is missing or fails, or a unit does not fit.
    """
    return [
        UnitArea(each.kind, each.unit.lanes, len(each.layers), cells)
        for each, cells in zip(hardware.all, area(hardware.all, family, folder=folder), strict=True)
    ]


@lru_cache(maxsize=1)
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    """Of this process, and gone with it."""
    return tempfile.TemporaryDirectory(prefix="hwsim-cells-")


def writable(folder: Path) -> Path:
    """The folder, or one of this process where it cannot be written: a worker may be on another machine."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(_own_folder().name)
    return folder if os.access(folder, os.W_OK | os.X_OK) else Path(_own_folder().name)


@dataclass(frozen=True)
class ProgramCosts:
    """What a program costs, by the names that fronts are drawn against."""

    accelerator: Accelerator
    family: str | None
    folder: Path

    @property
    def setting(self) -> str:
        """What the costs depend on besides the program and the code that made it: this module and the units."""
        return f"{self.accelerator!r} {self.family} {code_digest('rtl', __name__)}"

    @property
    def names(self) -> list[str]:
        """What fronts are drawn against."""
        return [*COST_NAMES, *self.cells]

    @property
    def cells(self) -> list[str]:
        """Those of them that are cells."""
        resources = [] if self.family is None else families.family(self.family).resources
        return [f"{self.family}_{name.lower()}" for name in resources]

    def __call__(self, program: Program) -> Mapping[str, float]:
        """Bytes, operations, cycles, how many layers of each kind have no unit, and cells where a family is given."""
        spent = program_cycles(program, self.accelerator)
        report = program_report(program, spent)
        sizes = report["bytes"]
        figures = (
            sizes["weights"],
            sizes["tables"],
            sizes["all_constants"],
            sizes["peak_activations"],
            sum(each["count"] for each in report["operations"]),
            report["fixops"],
            spent.cycles,
            spent.frames_a_second,
            spent.traffic,
        )
        costs: dict[str, float] = dict(zip(COST_NAMES, figures, strict=True))
        without = Counter(layer.unit for layer in spent.layers if layer.basis == ELEMENTWISE)
        costs |= {f"{WITHOUT_HARDWARE}{kind}": float(without[kind]) for kind in sorted(without)}
        if self.family is not None:
            target = families.family(self.family)
            found = program_area(hardware_of(program, self.accelerator), target, writable(self.folder))
            for name, resource in zip(self.cells, target.resources, strict=True):
                costs[name] = sum(each.cells[resource] for each in found)
        return costs
