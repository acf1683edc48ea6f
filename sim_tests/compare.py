"""The scoreboard: beats that came out against beats that should have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from amaranth.hdl import ShapeLike

from golden.spec import Spec
from sim_tests.beats import Beats, element_text
from sim_tests.simulate import Played


@dataclass(frozen=True)
class Mismatch:
    """The first place where hardware and reference differ.

    Attributes
    ----------
    unit, layer : str
    image, row, element : int
        The image's index in its data set, the row among the image's rows, the element in the row.
    expected, got : str
        Values, or what was wrong with the beat.
    cycle : int
        Counted from reset.
    """

    unit: str
    layer: str
    image: int
    row: int
    element: int
    expected: str
    got: str
    cycle: int

    def __str__(self) -> str:
        return (
            f"{self.unit} {self.layer}: image {self.image}, row {self.row}, element {self.element}: "
            f"expected {self.expected}, got {self.got}, in cycle {self.cycle}"
        )


class Origin(Protocol):
    """Where activations come from; `golden.vectors.UnitVectors` has it all."""

    @property
    def spec(self) -> Spec: ...

    @property
    def layer(self) -> str: ...

    @property
    def images(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Expected:
    """What a unit must give for a layer: beats of so many rows, which may differ in length."""

    beats: Beats
    rows: int

    def place(self, beat: int) -> tuple[int, int]:
        """The row of a beat, and its place in it."""
        ends = np.flatnonzero(self.beats.last[:beat])
        return len(ends), beat - (int(ends[-1]) + 1 if len(ends) else 0)

    def first(self, count: int) -> Expected:
        """The first beats, or all if there are fewer."""
        beats = Beats(self.beats.data[:count], self.beats.keep[:count], self.beats.last[:count])
        return Expected(beats, int(beats.last.sum()))


def compare(
    layer: Origin, element: ShapeLike, expected: Expected, played: Played, unstable: list[int], end: int
) -> tuple[int, Mismatch | None]:
    """Count the differences and find the first one.

    Parameters
    ----------
    element : ShapeLike
        Of the output.
    unstable : list of int
        Cycles of this layer in which a beat changed before it was taken.
    end : int
        Cycle at which waiting ended, for beats that never came.

    Returns
    -------
    mismatches : int
        Elements that differ or did not come, beats too many, and changes of an untaken beat.
    first : Mismatch or None
    """
    beats = expected.beats
    lanes, size = beats.data.shape[1:]
    got, split = Beats.unpacked(played.given, lanes, size)
    both = min(len(got.last), len(beats.last))
    wrong = beats.keep.copy()  # beats that did not come miss all their elements
    differs = (got.data[:both] != beats.data[:both]).any(axis=2) & beats.keep[:both]
    wrong[:both] = differs | (got.keep[:both] != beats.keep[:both])
    framing = (got.last[:both] != beats.last[:both]) | split[:both]
    wrong[:both, 0] |= framing
    excess = len(got.last) - both
    count = int(wrong.sum()) + excess + len(unstable)
    if count == 0:
        return 0, None

    def mismatch(beat: int, lane: int, wanted: str, found: str, cycle: int) -> Mismatch:
        row, place = expected.place(beat)
        image, row_of_image = divmod(row, max(expected.rows // len(layer.images), 1))
        index = layer.images[min(image, len(layer.images) - 1)]
        return Mismatch(layer.spec.kind, layer.layer, index, row_of_image, place * lanes + lane, wanted, found, cycle)

    found = []
    if wrong.any():
        beat, lane = (int(index) for index in np.argwhere(wrong)[0])
        wanted = element_text(element, beats.data[beat, lane]) if beats.keep[beat, lane] else "no element"
        if beat >= both:
            found.append(mismatch(beat, lane, wanted, "nothing", int(played.given_at[-1]) if both else end))
        else:
            value = element_text(element, got.data[beat, lane]) if got.keep[beat, lane] else "no element"
            if split[beat]:
                value = "a tkeep that splits an element"
            elif framing[beat] and not differs[beat, lane] and got.keep[beat, lane] == beats.keep[beat, lane]:
                marks = {True: "the last beat of a row", False: "a beat before the last"}
                wanted, value = marks[bool(beats.last[beat])], marks[bool(got.last[beat])]
            found.append(mismatch(beat, lane, wanted, value, int(played.given_at[beat])))
    if excess:
        found.append(mismatch(both - 1, 0, "no further beat", f"{excess} more", int(played.given_at[both])))
    if unstable:
        beat = int(np.searchsorted(played.given_at, unstable[0]))
        found.append(mismatch(beat, 0, "a beat that stays until it is taken", "a change", unstable[0]))
    return count, min(found, key=lambda one: one.cycle)
