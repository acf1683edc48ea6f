"""Intervals of bits side by side: what is known of a signal at a time in `sim_tests.formal.ranges`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """Some bits side by side: their interval read as unsigned and read as signed."""

    width: int
    low: int
    high: int
    signed_low: int
    signed_high: int

    @classmethod
    def of(cls, width: int, low: int, high: int) -> Piece:
        """The low `width` bits of an integer in ``low..high``."""
        top = 1 << width
        if high - low >= top:
            return cls(width, 0, top - 1, -(top >> 1), (top >> 1) - 1)

        def wrapped(start: int) -> tuple[int, int]:
            first = (low - start) % top + start
            last = first + high - low
            return (first, last) if last < start + top else (start, start + top - 1)

        return cls(width, *wrapped(0), *wrapped(-(top >> 1)))

    def interval(self, signed: bool) -> tuple[int, int]:
        return (self.signed_low, self.signed_high) if signed else (self.low, self.high)

    def joined(self, other: Piece) -> Piece:
        return Piece(
            self.width,
            min(self.low, other.low),
            max(self.high, other.high),
            min(self.signed_low, other.signed_low),
            max(self.signed_high, other.signed_high),
        )

    def cut(self, start: int, stop: int) -> Piece:
        """The bits ``start..stop`` of it."""
        if start == 0 and stop == self.width:
            return self
        unsigned = Piece.of(stop - start, self.low >> start, self.high >> start)
        signed = Piece.of(stop - start, self.signed_low >> start, self.signed_high >> start)
        return Piece(
            stop - start,
            max(unsigned.low, signed.low),
            min(unsigned.high, signed.high),
            max(unsigned.signed_low, signed.signed_low),
            min(unsigned.signed_high, signed.signed_high),
        )


Pieces = tuple[Piece, ...]


def whole(pieces: Pieces) -> Piece:
    """Neighbouring pieces, the lowest first, as one."""
    if len(pieces) == 1:
        return pieces[0]
    width = low = high = signed_low = signed_high = 0
    for number, piece in enumerate(pieces):
        top = number == len(pieces) - 1
        signed_low = low + (piece.signed_low << width) if top else 0
        signed_high = high + (piece.signed_high << width) if top else 0
        low, high = low + (piece.low << width), high + (piece.high << width)
        width += piece.width
    return Piece(width, low, high, signed_low, signed_high)


def cut(pieces: Pieces, start: int, stop: int) -> Pieces:
    found, place = [], 0
    for piece in pieces:
        first, last = max(start - place, 0), min(stop - place, piece.width)
        if first < last:
            found.append(piece.cut(first, last))
        place += piece.width
    return tuple(found)


def full(width: int) -> Piece:
    return Piece.of(width, 0, (1 << width) - 1)


def join(choices: list[Pieces]) -> Pieces:
    """What one of several choices can be; all are of one width."""
    result, *others = choices
    for other in others:
        if [piece.width for piece in result] != [piece.width for piece in other]:
            result, other = (whole(result),), (whole(other),)
        result = tuple(a.joined(b) for a, b in zip(result, other, strict=True))
    return result
