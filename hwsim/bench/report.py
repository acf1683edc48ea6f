"""Results of a benchmark as JSON and Markdown, and against those of the last run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from golden.errors import HwsimError
from golden.files import write_atomically
from hwsim.bench.measure import NOISY, Table

BEGIN, END = "<!-- hwsim bench: begin -->", "<!-- hwsim bench: end -->"
# A figure that moved by a smaller share is called the same.
MOVED = 0.1


def markdown(tables: Sequence[Table], machine: Mapping[str, Any], noise: float) -> str:
    """The tables with a line on date and machine."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"Measured on {machine['date']}: {machine['processor']}, {machine['cores']} cores, instructions "
        f"{machine['instructions']}, Python {machine['python']}, {versions}. Load before: {machine['load']}; runs of "
        f"one fixed computation lay {100 * noise:.0f} % apart{' (a noisy machine)' if noise > NOISY else ''}.",
        "",
    ]
    for table in tables:
        lines += [f"### {table.title}", "", "| " + " | ".join(table.columns) + " |", "|---" * len(table.columns) + "|"]
        lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in table.rows]
        lines += ["", *([table.note, ""] if table.note else [])]
    return "\n".join(lines)


def replace_section(path: Path, text: str) -> None:
    """Put the text between the two marks of a page.

    Raises
    ------
    HwsimError
        The page is not there or has no marks.
    """
    page = path.read_text() if path.is_file() else ""
    if BEGIN not in page or END not in page:
        raise HwsimError(f"{path}: there is no line {BEGIN!r} followed by {END!r} to put the tables between")
    head, tail = page.split(BEGIN)[0], page.split(END, 1)[1]
    write_atomically(path, f"{head}{BEGIN}\n{text}\n{END}{tail}".encode())


def save(path: Path, tables: Sequence[Table], machine: Mapping[str, Any], noise: float) -> None:
    """Write the results as JSON; tables of an earlier run that this one did not measure are kept."""
    kept = {entry["title"]: entry for entry in load(path).get("tables", [])}
    kept |= {table.title: asdict(table) for table in tables}
    values = {"machine": dict(machine), "noise": noise, "tables": list(kept.values())}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


def load(path: Path) -> dict[str, Any]:
    """Results of the last run, empty where there is none.

    Raises
    ------
    HwsimError
        The file is not one that `save` wrote.
    """
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text())
        figures_of(values)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise HwsimError(f"{path}: not the result of a benchmark; remove it") from None
    return values


def tables_of(path: Path) -> list[Table]:
    """The tables of saved results, those of earlier runs included."""
    entries = load(path).get("tables", [])
    return [Table(**{**entry, "rows": tuple(map(tuple, entry["rows"]))}) for entry in entries]


def figures_of(results: Mapping[str, Any]) -> dict[str, float]:
    """All figures of saved results by name."""
    return {name: value for table in results.get("tables", []) for name, value in table["figures"].items()}


def changes(tables: Sequence[Table], last: Mapping[str, Any]) -> list[str]:
    """A line for every figure that moved since the last run."""
    before = figures_of(last)
    lines = []
    for table in tables:
        for name, value in table.figures.items():
            if name in before and abs(value / before[name] - 1) > MOVED:
                lines.append(
                    f"{name}: {before[name]:.3g} before, {value:.3g} now ({100 * (value / before[name] - 1):+.0f} %)"
                )
    return lines
