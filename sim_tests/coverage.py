"""Line and toggle coverage of the exported Verilog under the standard stimulus, counted by Verilator."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from golden.errors import HwsimError
from golden.vectors import UnitVectors
from rtl import axi, catalog, verilog
from sim_tests.bulk import patience
from sim_tests.bulk_build import build_library
from sim_tests.bulk_model import BulkModel
from sim_tests.compare import compare
from sim_tests.mutation import standard_stimulus
from sim_tests.stimulus import beat_bits
from sim_tests.toolchain import find_toolchain


@dataclass(frozen=True)
class Coverage:
    """What the standard stimulus reaches of a unit.

    Attributes
    ----------
    unit, module : str
    lines, lines_hit : int
        Blocks of statements (and branches) and those that ran.
    toggles, toggles_hit : int
        Changes of a bit from 0 to 1 and from 1 to 0, of every port and variable, and those that happened.
    missing_lines : tuple of int
        Line numbers in the Verilog.
    missing_toggles : dict of str to tuple of str
        Changes that did not happen, by signal: ``[bit]:0->1``.
    verilog : Path
    """

    unit: str
    module: str
    lines: int
    lines_hit: int
    toggles: int
    toggles_hit: int
    missing_lines: tuple[int, ...]
    missing_toggles: dict[str, tuple[str, ...]]
    verilog: Path


def cover(layers: Sequence[UnitVectors], *, name: str, lanes: int, build_dir: Path) -> Coverage:
    """Coverage of the unit that serves `layers`, under `sim_tests.mutation.standard_stimulus`.

    Raises
    ------
    HwsimError
        The unit gives a wrong result; a tool is missing or fails.
    """
    tools = find_toolchain()
    unit = catalog.covering([(layer.spec, layer.constants) for layer in layers], lanes=lanes)
    bits, element = beat_bits(unit), axi.element_of(unit.o.payload)
    folder = build_library(
        verilog.export(unit, name), name, bits, loadable=unit.loadable, build_dir=build_dir, tools=tools, coverage=True
    )
    with tempfile.TemporaryDirectory(dir=build_dir) as temporary:
        counts = Path(temporary) / "coverage.dat"
        with BulkModel(folder, bits, patience=patience(unit)) as model:
            for step in standard_stimulus(unit, layers):
                if step.reset:
                    model.reset()
                played, unstable, _ = model.play(step.play, step.stall_seed, breaks_off=step.expected is None)
                if step.expected is None:
                    continue
                wrong, first = compare(step.layer, element, step.expected, played, unstable, model.cycle)
                if wrong:
                    raise HwsimError(f"{name} fails ({step.name}: {first}); mend it first, `hwsim cosim` shows where")
            model.write_coverage(counts)
        points = read_counts(counts)
    return _summary(unit.spec.kind, name, points, folder / f"{name}.v")


@dataclass(frozen=True)
class Point:
    """A place that is counted: `kind` is "toggle", or "line" and the like; `what` the signal and its change."""

    kind: str
    line: int
    what: str
    count: int


def read_counts(path: Path) -> list[Point]:
    """The points of a ``coverage.dat`` of Verilator.

    Each line is ``C '<fields>' count``; a field is its key after byte 1 and its value after byte 2.

    Raises
    ------
    HwsimError
        The file has another form.
    """
    points = []
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"C '(.*)' (\d+)", line)
        if match is None:
            raise HwsimError(f"{path} is no coverage file of Verilator: {line[:60]!r}; run the coverage again")
        fields = dict(part.split("\x02", 1) for part in match[1].split("\x01") if part)
        kind = fields.get("page", "").split("/")[0].removeprefix("v_")
        points.append(Point(kind, int(fields["l"]), fields.get("o", ""), int(match[2])))
    return points


def _summary(kind: str, name: str, points: Sequence[Point], text: Path) -> Coverage:
    toggles = [point for point in points if point.kind == "toggle"]
    lines = [point for point in points if point.kind != "toggle"]
    if not toggles or not lines:
        raise HwsimError(f"Verilator counted nothing in {text}; delete {text.parent} and run the coverage again")
    missing: dict[str, list[str]] = defaultdict(list)
    for point in toggles:
        if not point.count:
            signal, _, change = point.what.partition("[") if "[" in point.what else point.what.partition(":")
            missing[signal].append(f"[{change}" if "[" in point.what else f":{change}")
    return Coverage(
        unit=kind,
        module=name,
        lines=len(lines),
        lines_hit=sum(point.count > 0 for point in lines),
        toggles=len(toggles),
        toggles_hit=sum(point.count > 0 for point in toggles),
        missing_lines=tuple(sorted({point.line for point in lines if not point.count})),
        missing_toggles={signal: tuple(changes) for signal, changes in sorted(missing.items())},
        verilog=text,
    )
