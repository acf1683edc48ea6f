"""What a bench knows of a unit's rows: how they are framed, and what is expected of them."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Framing:
    """How rows of beats in become rows of beats out.

    Attributes
    ----------
    beats_in : int or None
        A row counts as ended after so many beats, even without ``last``.
    drops_surplus : bool
        What follows up to ``last`` is dropped; else it is a row of its own.
    beats_out : int or None
        Beats of every row that comes out; None: as many as the row had.
    last_lanes : int or None
        Lanes kept in the last beat out; None: as many as in the last beat in.
    """

    beats_in: int | None = None
    drops_surplus: bool = False
    beats_out: int | None = None
    last_lanes: int | None = None


@dataclass(frozen=True)
class Table:
    """Expected outputs, for the lengths of a row and all its elements.

    Attributes
    ----------
    lengths : tuple of int
        Lengths of the rows that may come.
    elementwise : bool
        The output at a place depends on the place and the input there only.
    places_out : int
        Elements of the longest row out.
    inputs : tuple of int
        Bit patterns that an element may have; all patterns when empty.
    outputs : dict
        Of elementwise tables from (place, element) to the bits of the output element; otherwise from
        (length, elements joined, place 0 lowest) to those of the whole row, place 0 lowest.
    """

    lengths: tuple[int, ...]
    elementwise: bool
    places_out: int
    outputs: dict[tuple[int, int], int]
    inputs: tuple[int, ...] = ()

    def of_lengths(self, lengths: tuple[int, ...]) -> Table:
        """The part for rows of some lengths, of a table that is not elementwise."""
        outputs = {key: bits for key, bits in self.outputs.items() if key[0] in lengths}
        return replace(self, lengths=lengths, outputs=outputs)
