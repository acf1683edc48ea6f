"""Results of a benchmark as JSON and Markdown, and against those of the last run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from golden.errors import HwsimError
from golden.files import write_atomically
from hwsim.bench.measure import EXPONENT, NOISY, Table

BEGIN, END = "<!-- hwsim bench: begin -->", "<!-- hwsim bench: end -->"
# A figure that moved by a smaller share, or an exponent by less, is called the same.
MOVED = 0.1
# What figures depend on: those of other machines are not compared.
HARDWARE = ("processor", "cores", "instructions")


def markdown(tables: Sequence[Table], last: Table) -> str:
    """The tables behind a line on date and machine.

    Parameters
    ----------
    tables : sequence of Table
        Those measured at another time or place than `last` have a line of their own.
    last : Table
        One that was measured last.
    """
    page = _measured(last)
    lines = [page, ""]
    for table in tables:
        lines += [f"### {table.title}", ""]
        own = _measured(table)
        lines += [own, ""] if own != page else []
        lines += ["| " + " | ".join(table.columns) + " |", "|---" * len(table.columns) + "|"]
        lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in table.rows]
        lines += ["", *([table.note, ""] if table.note else [])]
    return "\n".join(lines)


def _measured(table: Table) -> str:
    machine = table.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    noisy = " (a noisy machine)" if table.noise > NOISY else ""
    return (
        f"Measured on {machine['date']}: {machine['processor']}, {machine['cores']} cores, instructions "
        f"{machine['instructions']}, Python {machine['python']}, {versions}. Load before: {machine['load']}; runs of "
        f"one fixed computation lay up to {100 * table.noise:.0f} % apart{noisy}."
    )


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


def save(path: Path, tables: Sequence[Table]) -> None:
    """Write the results as JSON; tables of an earlier run that this one did not measure are kept."""
    kept = {entry["title"]: entry for entry in load(path).get("tables", [])}
    kept |= {table.title: asdict(table) for table in tables}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps({"tables": list(kept.values())}, indent=1) + "\n").encode())


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
        entries = values["tables"]
        known = [entry.get("machine") and "noise" in entry for entry in entries]
        for table in map(_table, entries):
            dict(table.figures)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise HwsimError(f"{path}: not the result of a benchmark; remove it") from None
    if not all(known):
        raise HwsimError(
            f"{path}: results of an earlier version, which did not keep where each table was measured; remove it, or "
            "give another --output"
        )
    return values


def _table(entry: Mapping[str, Any]) -> Table:
    return Table(**{**entry, "columns": tuple(entry["columns"]), "rows": tuple(map(tuple, entry["rows"]))})


def tables_of(path: Path) -> list[Table]:
    """The tables of saved results, those of earlier runs included."""
    return [_table(entry) for entry in load(path).get("tables", [])]


def changes(tables: Sequence[Table], last: Sequence[Table]) -> list[str]:
    """A line for every figure that moved since the last run, or one that none did; of other machines, that they are.

    Parameters
    ----------
    tables, last : sequence of Table
        Those of the same title are compared.
    """
    before = {table.title: table for table in last}
    lines, compared = [], False
    for table in tables:
        if table.title not in before:
            continue
        old = before[table.title]
        if any(old.machine.get(name) != table.machine.get(name) for name in HARDWARE):
            there = ", ".join(str(old.machine.get(name)) for name in HARDWARE)
            lines.append(f"not compared: {table.title}, which was measured on another machine before ({there})")
            continue
        for name, value in table.figures.items():
            if name not in old.figures:
                continue
            compared = True
            first = old.figures[name]
            moved = value - first if name.endswith(EXPONENT) else value / first - 1
            if abs(moved) > MOVED:
                difference = f"{moved:+.2f}" if name.endswith(EXPONENT) else f"{100 * moved:+.0f} %"
                lines.append(f"changed: {name}: {first:.3g} before, {value:.3g} now ({difference})")
    if compared and not any(line.startswith("changed: ") for line in lines):
        lines.append(f"nothing changed by more than {100 * MOVED:.0f} %, and no exponent by more than {MOVED}")
    return lines
