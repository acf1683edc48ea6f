"""The log of a training run: a CSV file with a line an epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from golden.errors import HwsimError
from golden.files import write_atomically


class TrainingLog:
    """Lines by epoch, on disk after each.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []

    def keep(self, epochs: int) -> None:
        """Take over the lines of the first epochs of a run that goes on; those of later ones come again.

        Raises
        ------
        HwsimError
            The file is not such a log.
        """
        if not epochs or not self.path.exists():
            return
        try:
            rows = list(csv.DictReader(io.StringIO(self.path.read_text())))
            self.rows = [row for row in rows if int(row["epoch"]) <= epochs]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HwsimError(f"{self.path}: not a log of this command ({error!r}); move it away") from None

    def add(self, epoch: int, losses: Mapping[str, float], rate: float, seconds: float) -> None:
        """Append the line of an epoch.

        Parameters
        ----------
        epoch : int
            Counted from 1.
        losses : mapping of str to float
            Means over the epoch.
        rate : float
            Learning rate of its last step.
        seconds : float
            It took; of an epoch that was resumed, the part since then.
        """
        values = {"epoch": str(epoch), **{name: f"{value:.6g}" for name, value in losses.items()}}
        self.rows.append({**values, "learning rate": f"{rate:.6g}", "seconds": f"{seconds:.3f}"})
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[-1]), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, text.getvalue())
