"""Ranges of every signal of a unit, in Python integers: intervals, iterated until nothing grows.

For each part of a signal that is used by itself, an interval of its bits read as unsigned and one read as signed.
Every rule takes in at least what the operator can give, so that a range is true for all inputs, all
stalls and all times. What keeps growing (a counter, a sum) gets all values of its width, but for the
accumulators that are named: these add up at most so many terms, see `limits` of `ranges_of`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from amaranth.hdl import Const, Fragment, Shape, Value
from amaranth.hdl._ast import Assign, Concat, Operator, Part, Signal, SignalDict, Slice, Switch, SwitchValue
from amaranth.hdl._mem import MemoryInstance

from sim_tests.formal.adders import Narrowing
from sim_tests.formal.pieces import Piece, Pieces, cut, full, join, whole

Limit = int | tuple[int, int]
"""Of an accumulator: most terms, or smallest and largest sum."""

ROUNDS = 200
"""Rounds after which what still grows gets all values of its width."""


@dataclass
class Ranges:
    """Pieces of every signal; `interval` reads any expression."""

    cuts: SignalDict = field(default_factory=SignalDict)
    signals: SignalDict = field(default_factory=SignalDict)
    wires: SignalDict = field(default_factory=SignalDict)
    sums: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Sums of named accumulators, by the identity of the operator."""

    def interval(self, value: Value) -> tuple[int, int]:
        """Smallest and largest number that an expression can be."""
        return whole(self.pieces(value)).interval(value.shape().signed) if len(value) else (0, 0)

    def fits(self, narrowing: Narrowing) -> bool:
        """Whether the result of a narrowing always fits into what it keeps."""
        if self.interval(narrowing.when) == (0, 0):
            return True
        low, high = self.interval(narrowing.result)
        kept = narrowing.kept
        bits = kept.width - kept.signed
        return -(1 << bits) * kept.signed <= low and high < 1 << bits

    def pieces(self, value: Value) -> Pieces:
        match value:
            case Const():
                return (Piece.of(len(value), value.value, value.value),) if len(value) else ()
            case Signal():
                return self.signals[value] if value in self.signals else self._unknown(value)
            case Slice():
                return cut(self.pieces(value.value), value.start, value.stop)
            case Concat():
                return tuple(itertools.chain.from_iterable(self.pieces(part) for part in value.parts))
            case SwitchValue():
                shape = value.shape()
                chosen = [
                    self.resized(case, shape) for patterns, case in value.cases if self._may(value.test, patterns)
                ]
                return join(chosen)
            case Operator():
                return self._operator(value)
            case _:
                return (full(len(value)),)

    def _may(self, test: Value, patterns: tuple[str, ...] | None) -> bool:
        """Whether a case can be taken: constants decide."""
        if patterns is None or not len(test):
            return True
        low, high = whole(self.pieces(test)).interval(False)
        return low != high or any(
            all(bit in ("-", str(low >> place & 1)) for place, bit in enumerate(reversed(pattern)))
            for pattern in patterns
        )

    def _unknown(self, signal: Signal) -> Pieces:
        bounds = sorted({0, len(signal), *self.cuts.get(signal, ())})
        return tuple(full(stop - start) for start, stop in itertools.pairwise(bounds))

    def resized(self, value: Value, shape: Shape) -> Pieces:
        """An expression as it is assigned to something of a shape."""
        pieces, width = self.pieces(value), len(value)
        if width >= shape.width:
            return cut(pieces, 0, shape.width)
        if not value.shape().signed:
            fill = Piece.of(shape.width - width, 0, 0)
            return (*pieces, fill)
        return (Piece.of(shape.width, *whole(pieces).interval(True)),)

    def _operator(self, value: Operator) -> Pieces:
        shape, operands = value.shape(), value.operands
        if value.operator in ("u", "s"):
            return self.pieces(operands[0])
        if id(value) in self.sums:
            return (Piece.of(shape.width, *self.sums[id(value)]),)
        bounds = [self.interval(operand) for operand in operands]
        match value.operator, bounds:
            case "+", [(a, b), (c, d)]:
                low, high = a + c, b + d
            case "-", [(a, b), (c, d)]:
                low, high = a - d, b - c
            case "-", [(a, b)]:
                low, high = -b, -a
            case "*", [(a, b), (c, d)]:
                products = [a * c, a * d, b * c, b * d]
                low, high = min(products), max(products)
            case "<<", [(a, b), (c, d)]:
                low, high = min(a << c, a << d), max(b << c, b << d)
            case ">>", [(a, b), (c, d)]:
                low, high = min(a >> c, a >> d), max(b >> c, b >> d)
            case "~", [(a, b)]:
                low, high = -1 - b, -1 - a
            case ("<", [(a, b), (c, d)]) if b < c or a >= d:
                low = high = int(b < c)
            case (">=", [(a, b), (c, d)]) if a >= d or b < c:
                low = high = int(a >= d)
            case ("b", [(a, b)]) if a > 0 or b < 0 or a == b == 0:
                low = high = int(not a == b == 0)
            case "&", _:
                low, high = self._masked(operands, bounds)
            case (("|" | "^"), _):
                low, high = _bitwise(bounds)
            case _:
                return (full(shape.width),)
        return (Piece.of(shape.width, low, high),)

    def _masked(self, operands: Iterable[Value], bounds: list[tuple[int, int]]) -> tuple[int, int]:
        """A mask of one bit, repeated, leaves a number or makes it 0."""
        (first, second) = operands
        for mask, (low, high) in ((first, bounds[1]), (second, bounds[0])):
            if isinstance(mask, Concat) and len({id(part) for part in mask.parts}) == 1 and len(mask.parts[0]) == 1:
                return min(low, 0), max(high, 0)
        return (0, min(b for _, b in bounds)) if all(a >= 0 for a, _ in bounds) else _bitwise(bounds)


def _bitwise(bounds: list[tuple[int, int]]) -> tuple[int, int]:
    bits = max((b if b >= 0 else ~b).bit_length() for pair in bounds for b in pair)
    return (-(1 << bits) if any(a < 0 for a, _ in bounds) else 0), (1 << bits) - 1


def ranges_of(fragment: Fragment, limits: Mapping[str, Limit]) -> Ranges:
    """Ranges of all signals of a unit that nothing outside writes but its input streams.

    Parameters
    ----------
    fragment : Fragment
        The unit, elaborated.
    limits : mapping
        Accumulators by name, with the most terms that are added up in them from 0, or the smallest and the largest
        sum. What is added to such a register is at most so many times the smallest and largest term.
    """
    assignments: list[Assign] = []
    memories: list[MemoryInstance] = []
    _collect(fragment, assignments, memories)
    ranges = Ranges()
    targets = SignalDict()
    for statement in assignments:
        for signal in statement.lhs._lhs_signals():
            targets[signal] = True
    for statement in fragment_wires(fragment):
        ranges.wires[statement.lhs] = statement.rhs
    _find_cuts(ranges.cuts, assignments, memories)
    for memory in memories:
        for port in memory._read_ports:
            for signal in port._data._lhs_signals():
                targets[signal] = True
    for signal in targets:
        bounds = sorted({0, len(signal), *ranges.cuts.get(signal, ())})
        ranges.signals[signal] = tuple(
            Piece.of(stop - start, value := signal.init >> start & (1 << stop - start) - 1, value)
            for start, stop in itertools.pairwise(bounds)
        )
    for number in range(ROUNDS * 2):
        grown = False
        for statement in assignments:
            grown |= _assign(ranges, statement.lhs, statement.rhs, limits, widen=number > ROUNDS)
        for memory in memories:
            grown |= _read(ranges, memory)
        if not grown:
            return ranges
    raise AssertionError("ranges must stop growing")


def fragment_wires(fragment: Fragment) -> Iterable[Assign]:
    """Plain assignments to whole combinational signals."""
    for statement in fragment.statements.get("comb", ()):
        if isinstance(statement, Assign) and isinstance(statement.lhs, Signal):
            yield statement
    for part, _, _ in fragment.subfragments:
        if not isinstance(part, MemoryInstance):
            yield from fragment_wires(part)


def _collect(fragment: Fragment, assignments: list[Assign], memories: list[MemoryInstance]) -> None:
    if isinstance(fragment, MemoryInstance):
        memories.append(fragment)
        return

    def visit(statements: Iterable[object]) -> None:
        for statement in statements:
            if isinstance(statement, Assign):
                assignments.append(statement)
            elif isinstance(statement, Switch):
                for _, inner, _ in statement.cases:
                    visit(inner)

    for statements in fragment.statements.values():
        visit(statements)
    for part, _, _ in fragment.subfragments:
        _collect(part, assignments, memories)


def _find_cuts(cuts: SignalDict, assignments: list[Assign], memories: list[MemoryInstance]) -> None:
    """Where signals are taken apart, passed on between signals that are copied whole."""

    def visit(value: Value) -> None:
        if isinstance(value, Slice):
            if isinstance(value.value, Signal):
                cuts.setdefault(value.value, set()).update((value.start, value.stop))
            visit(value.value)
        elif isinstance(value, Concat):
            for part in value.parts:
                visit(part)
        elif isinstance(value, SwitchValue):
            visit(value.test)
            for _, chosen in value.cases:
                visit(chosen)
        elif isinstance(value, Operator):
            for operand in value.operands:
                visit(operand)
        elif isinstance(value, Part):
            visit(value.value)

    copies: list[tuple[Signal, Signal]] = []
    for statement in assignments:
        visit(statement.lhs)
        visit(statement.rhs)
        if isinstance(statement.lhs, Signal) and isinstance(statement.rhs, Signal):
            copies.append((statement.lhs, statement.rhs))
    for memory in memories:
        data = [port._data for port in (*memory._read_ports, *memory._write_ports)]
        copies += [
            (a, b) for a, b in itertools.combinations(data, 2) if isinstance(a, Signal) and isinstance(b, Signal)
        ]
    changed = True
    while changed:
        changed = False
        for a, b in copies:
            for source, target in ((a, b), (b, a)):
                new = {place for place in cuts.get(source, ()) if place <= len(target)} - cuts.setdefault(target, set())
                cuts[target] |= new
                changed |= bool(new)


def _assign(ranges: Ranges, target: Value, value: Value, limits: Mapping[str, Limit], *, widen: bool) -> bool:
    if isinstance(target, Operator):
        target = target.operands[0]
    if isinstance(target, Signal) and target.name in limits:
        return _accumulate(ranges, target, value, limits[target.name])
    return _store(ranges, target, ranges.resized(value, target.shape()), widen)


def _accumulate(ranges: Ranges, target: Signal, value: Value, limit: Limit) -> bool:
    """The term is what is added to the register itself, or to 0 in its place; anything else counts as it is."""
    pieces: Pieces = (Piece.of(len(target), 0, 0),)
    for total, term in _terms(ranges, target, value):
        if total is None:
            pieces = join([(whole(pieces),), (whole(ranges.resized(term, target.shape())),)])
            continue
        low, high = ranges.interval(term)
        bounds = limit if isinstance(limit, tuple) else (min(limit * low, 0), max(limit * high, 0))
        ranges.sums[id(total)] = bounds
        pieces = (pieces[0].joined(Piece.of(len(target), *bounds)),)
    return _store(ranges, target, pieces, False)


def _terms(ranges: Ranges, target: Signal, value: Value) -> Iterable[tuple[Operator | None, Value]]:
    """What a value adds to the register, as (sum, term), and what it puts in its place, as (None, value)."""
    if isinstance(value, Signal) and value in ranges.wires:
        value = ranges.wires[value]
    if not _has(value, target):
        yield None, value
    elif isinstance(value, Operator) and value.operator == "+":
        first, second = value.operands
        yield value, second if _has(first, target) else first
    elif isinstance(value, Slice):
        yield from _terms(ranges, target, value.value)
    elif isinstance(value, SwitchValue):
        for _, chosen in value.cases:
            yield from _terms(ranges, target, chosen)
    elif value is not target:
        yield None, value


def _has(value: Value, signal: Signal) -> bool:
    return signal in value._rhs_signals()


def _store(ranges: Ranges, target: Value, pieces: Pieces, widen: bool) -> bool:
    if isinstance(target, Concat):
        grown, place = False, 0
        for part in target.parts:
            grown |= _store(ranges, part, cut(pieces, place, place + len(part)), widen)
            place += len(part)
        return grown
    start, signal, stop = 0, target, len(target)
    while isinstance(signal, Slice):
        start, stop, signal = start + signal.start, stop + signal.start, signal.value
    if not isinstance(signal, Signal):
        # Part of a signal chosen at run time: anything may be written anywhere.
        grown = False
        for written in target._lhs_signals():
            unknown = ranges._unknown(written)
            grown |= ranges.signals[written] != unknown
            ranges.signals[written] = unknown
        return grown
    old, new, place = ranges.signals[signal], [], 0
    for piece in old:
        first, last = max(place, start), min(place + piece.width, stop)
        if first >= last:
            new.append(piece)
        elif (first, last) == (place, place + piece.width):
            joined = piece.joined(whole(cut(pieces, place - start, place - start + piece.width)))
            new.append(full(piece.width) if widen and joined != piece else joined)
        else:
            new.append(full(piece.width))
        place += piece.width
    ranges.signals[signal] = tuple(new)
    return tuple(new) != old


def _read(ranges: Ranges, memory: MemoryInstance) -> bool:
    """A read port gives what was there at the start, or what any port writes."""
    grown = False
    for port in memory._read_ports:
        if not isinstance(port._data, Signal) or not len(port._data):
            continue
        widths = [piece.width for piece in ranges.signals[port._data]]
        bounds = list(itertools.pairwise([0, *itertools.accumulate(widths)]))
        words = {int(Const.cast(_raw(memory, word)).value) for word in range(memory._data.depth)}
        stored = tuple(
            join([(Piece.of(b - a, w >> a & (1 << b - a) - 1, w >> a & (1 << b - a) - 1),) for w in words])[0]
            for a, b in bounds
        )
        grown |= _store(ranges, port._data, stored, False)
        for writer in memory._write_ports:
            grown |= _store(ranges, port._data, ranges.pieces(writer._data), False)
    return grown


def _raw(memory: MemoryInstance, word: int) -> int:
    return memory._data._init._raw[word]
