"""Finished points on disk, each in a file named by everything that its figures depend on."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from golden.errors import HwsimError
from golden.files import write_atomically

TOP1 = "top1"
# Of what points are judged by: all else, the costs, is to be small.
LARGE = frozenset({TOP1, "frames_a_second"})
# Of costs that say how many layers of a kind have no unit in hardware; the kind follows.
WITHOUT_HARDWARE = "layers_without_hardware."
GOES_ON = "the points that are finished are kept, run again to go on"


@dataclass(frozen=True)
class Record:
    """What is known of a point.

    Attributes
    ----------
    key : str
        Digest of recipe, network, images and code.
    point : mapping of str to value
    recipe : str
        Name.
    correct : str
        A bit an evaluation image, packed and in base64: was the integer program right?
    images : int
    fake_quant_top1 : float or None
        Percent; where it was asked for.
    costs : mapping of str to number
    seconds : float
        Spent on it.
    error : str
        Why it has no figures; empty otherwise.
    passing : bool
        The error is of the machine and not of the point (memory, a file, a lost worker): it is not kept, so that the
        next run tries again.
    """

    key: str
    point: Mapping[str, Any]
    recipe: str = ""
    correct: str = ""
    images: int = 0
    fake_quant_top1: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)
    error: str = ""
    passing: bool = False

    @property
    def bits(self) -> np.ndarray:
        """Was each image right? bool [images]."""
        packed = np.frombuffer(base64.b64decode(self.correct), np.uint8)
        return np.unpackbits(packed, count=self.images).astype(bool)

    @property
    def without_hardware(self) -> dict[str, int]:
        """How many layers of a kind have no unit in hardware, so that their cells are not counted."""
        return {
            name.removeprefix(WITHOUT_HARDWARE): int(count)
            for name, count in self.costs.items()
            if name.startswith(WITHOUT_HARDWARE)
        }

    @property
    def top1(self) -> float:
        """Percent."""
        return float(self.bits.mean() * 100)


def loss_of(record: Record, name: str) -> float:
    """What a measured point is judged by, so that less is better.

    Parameters
    ----------
    record : Record
    name : str
        "top1" or a cost; those in `LARGE` are negated.
    """
    value = record.top1 if name == TOP1 else float(record.costs[name])
    return -value if name in LARGE else value


def pack(correct: np.ndarray) -> str:
    """Bits as in `Record.correct`."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode()


class Store:
    """Records of one setting (network, images, code), a file each.

    Parameters
    ----------
    folder : Path
    setting : str
        Digest of all that the records depend on besides the recipe.
    """

    def __init__(self, folder: Path, setting: str) -> None:
        self.folder = folder
        self.setting = setting

    def key(self, recipe: object, extra: str = "") -> str:
        """Name of a recipe's record; `extra` is what else was asked for."""
        return hashlib.sha256(f"{self.setting} {recipe!r} {extra}".encode()).hexdigest()[:16]

    def read(self, key: str) -> Record | None:
        """A record, if it is there and whole."""
        try:
            return Record(**json.loads((self.folder / f"{key}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, record: Record) -> None:
        """Keep a record, but for one of a passing error.

        Raises
        ------
        HwsimError
            It cannot be written; those that are there stay.
        """
        if record.passing:
            return
        try:
            write_atomically(self.folder / f"{record.key}.json", json.dumps(asdict(record), indent=1) + "\n")
        except HwsimError as error:
            raise HwsimError(f"{error}; {GOES_ON}") from None
