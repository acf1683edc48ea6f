"""Progress bars and tables, on `rich`."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Seconds that nobody wonders about.
PATIENCE = 3.0


@contextmanager
def told_when_slow(text: str) -> Iterator[None]:
    """Say on standard error what is waited for, once it has taken a while."""
    timer = threading.Timer(PATIENCE, lambda: print(f"hwsim: {text}", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; the value is called with the number of finished items."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
    """Print a table to standard output; columns of numbers are aligned right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    cells = [list(row) for row in rows]
    result = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = bool(cells) and all(isinstance(row[index], int | float) for row in cells)
        result.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        result.add_row(
            *(
                f"{cell:.3f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)
                for cell in row
            )
        )
    # Piped output must not be cut to the width of a terminal that is not there, nor end its lines with blanks.
    piped = not sys.stdout.isatty()
    console = Console(width=160, file=io.StringIO()) if piped else Console()
    if title is not None:
        # A line of its own: rich would break a table's title at the width of the table.
        console.print(escape(title), style="italic", soft_wrap=True, highlight=False)
    console.print(result)
    if isinstance(console.file, io.StringIO):
        print("\n".join(line.rstrip() for line in console.file.getvalue().splitlines()))
