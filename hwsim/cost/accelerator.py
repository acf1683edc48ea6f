"""An accelerator built from the units, as far as its cycles depend on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from golden.errors import HwsimError


@dataclass(frozen=True)
class Accelerator:
    """A MAC array, the streaming units of `rtl`, a memory on the chip and one outside of it.

    Attributes
    ----------
    array_rows, array_columns : int
        Of the MAC array: it makes a tile of so many rows and columns of a product at a time, a step of all their
        sums each cycle.
    mac_bits : int
        Widest operand that a MAC takes in one step; wider ones are cut into digits.
    lanes : int
        Elements a beat of every other unit.
    lanes_of : mapping of str to int
        Lanes of some kinds of units, in place of `lanes`.
    memory_bytes : int
        On the chip, for constants and activations.
    bandwidth : float
        Of the outside memory, in 10^9 bytes a second.
    clock_mhz : float

    Raises
    ------
    HwsimError
        A value that is not positive, or a width or number of lanes out of range.
    """

    array_rows: int = 16
    array_columns: int = 16
    mac_bits: int = 8
    lanes: int = 4
    lanes_of: Mapping[str, int] = field(default_factory=dict)
    memory_bytes: int = 512 << 10
    bandwidth: float = 1.0
    clock_mhz: float = 100.0

    def __post_init__(self) -> None:
        whole = {
            "array_rows": (self.array_rows, 1 << 12),
            "array_columns": (self.array_columns, 1 << 12),
            "mac_bits": (self.mac_bits, 32),
            "lanes": (self.lanes, 64),
            **{f"lanes of {kind}": (lanes, 64) for kind, lanes in self.lanes_of.items()},
            "memory_bytes": (self.memory_bytes, 1 << 40),
        }
        for name, (value, most) in whole.items():
            if type(value) is not int or not 1 <= value <= most:
                raise HwsimError(f"accelerator: {name} must be an integer between 1 and {most}, not {value!r}")
        for name, number in (("bandwidth", self.bandwidth), ("clock_mhz", self.clock_mhz)):
            if not (number > 0 and math.isfinite(number)):
                raise HwsimError(f"accelerator: {name} must be positive and finite, not {number!r}")

    def lanes_for(self, kind: str) -> int:
        """Lanes of a kind of unit."""
        return self.lanes_of.get(kind, self.lanes)

    @property
    def bytes_a_cycle(self) -> float:
        """Of the outside memory."""
        return self.bandwidth * 1e3 / self.clock_mhz
