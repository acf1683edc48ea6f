"""Finds every place in a unit where the result of an arithmetic operator loses upper bits.

Amaranth's operators are exact: a sum has one bit more than its operands. Bits are lost where such a result is
assigned to something narrower, or where its upper bits are sliced off. Each such place is a `Narrowing`;
that no value is changed there, in the reading that the code gives the result, is what "no overflow" means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from amaranth.hdl import Assert, Const, Fragment, Shape, Signal, Value
from amaranth.hdl._ast import Assign, Concat, Operator, Slice, Statement, Switch, SwitchValue, _StatementList
from amaranth.hdl._mem import MemoryInstance

ARITHMETIC = {"+": "adder", "-": "subtractor", "*": "multiplier", "<<": "left shift"}


@dataclass(frozen=True)
class Narrowing:
    """An arithmetic result of which only the low bits go on.

    Attributes
    ----------
    name : str
        Signal written, and its component.
    line : str
        Source file and line of the assignment.
    operator : str
        What makes the result, a value of `ARITHMETIC`.
    result : Value
        With all its bits.
    when : Value
        Whether the result is chosen, where it stands in a multiplexer.
    kept : Shape
        Width and sign that it keeps.
    """

    name: str
    line: str
    operator: str
    result: Value
    when: Value
    kept: Shape

    @property
    def fits(self) -> Value:
        """Whether the value is the same in the bits kept, or is not chosen."""
        low = self.result[: self.kept.width]
        return ~self.when | ((low.as_signed() if self.kept.signed else low.as_unsigned()) == self.result)


def narrowings(fragment: Fragment, path: str = "") -> Iterator[Narrowing]:
    """All narrowings of a unit and its parts, in the order of the source."""
    if isinstance(fragment, MemoryInstance):
        return
    for statements in fragment.statements.values():
        for statement in _assignments(statements):
            yield from _in_assignment(statement, path)
    for part, name, _ in fragment.subfragments:
        yield from narrowings(part, f"{path}{name}.")


Condition = Callable[[Narrowing], "Value | None"]


def signals_of(fragment: Fragment) -> dict[str, Signal]:
    """The signals that a unit or part reads or writes itself, by name."""
    return {
        signal.name: signal
        for statements in fragment.statements.values()
        for statement in statements
        for signal in (*statement._rhs_signals(), *statement._lhs_signals())
    }


def instrument(
    fragment: Fragment,
    condition: Condition,
    claims: Callable[[Mapping[str, Signal]], Iterator[tuple[str, Value]]],
    path: str = "",
) -> None:
    """Put assertions into a unit and its parts; changes `fragment`.

    Parameters
    ----------
    condition : callable
        From a narrowing to what must hold there; None for no assertion. It stands beside the assignment, under
        the same conditions.
    claims : callable
        From the signals of a part to what holds there at all times, with a text each.
    """
    signals = signals_of(fragment)
    for domain, statements in list(fragment.statements.items()):
        fragment.statements[domain] = _instrumented(statements, condition, path)
    for text, claim in claims(signals):
        fragment.add_statements("comb", Assert(claim, path + text))
    for part, name, _ in fragment.subfragments:
        if not isinstance(part, MemoryInstance):
            instrument(part, condition, claims, f"{path}{name}.")


def _instrumented(statements: _StatementList, condition: Condition, path: str) -> _StatementList:
    result = _StatementList()
    for statement in statements:
        if isinstance(statement, Switch):
            cases = [
                (patterns, _instrumented(inner, condition, path), location)
                for patterns, inner, location in statement.cases
            ]
            statement = Switch(statement.test, cases, src_loc=statement.src_loc)
        result.append(statement)
        if isinstance(statement, Assign):
            for found in _in_assignment(statement, path):
                must = condition(found)
                if must is not None:
                    text = f"{found.operator} {found.name} overflows ({found.line})"
                    claim = Assert(must, text)
                    claim._MustUse__used = True
                    result.append(claim)
    return result


def _assignments(statements: _StatementList) -> Iterator[Assign]:
    for statement in statements:
        if isinstance(statement, Assign):
            yield statement
        elif isinstance(statement, Switch):
            for _, inner, _ in statement.cases:
                yield from _assignments(inner)


def _in_assignment(statement: Assign, path: str) -> Iterator[Narrowing]:
    target = statement.lhs
    signals = sorted(signal.name for signal in target._lhs_signals())
    line = _line(statement)
    seen = set()
    for operator, result, when, kept in _narrowed(statement.rhs, target.shape(), Const(1, 1)):
        # Expressions are trees: what is used twice is found twice.
        if (id(result), kept.width) in seen:
            continue
        seen.add((id(result), kept.width))
        yield Narrowing(path + ",".join(signals), line, operator, result, when, kept)


def _narrowed(value: Value, kept: Shape, when: Value) -> Iterator[tuple[str, Value, Value, Shape]]:
    """Arithmetic results inside `value` that lose upper bits, when `value` itself goes on as `kept`."""
    if not kept.width:
        return
    if isinstance(value, Operator):
        yield from _in_operator(value, kept, when)
    elif isinstance(value, Slice):
        inner, width = value.value, min(value.stop - value.start, kept.width)
        whole = value.start + width == len(inner)
        yield from _narrowed(inner, inner.shape() if whole else Shape(value.start + width, kept.signed), when)
    elif isinstance(value, Concat):
        place = 0
        for part in value.parts:
            room, top = kept.width - place, part is value.parts[-1]
            if room > 0 and len(part):
                # What is put together bit by bit says nothing of a sign: the upper part keeps that of its operator.
                sign = top and (kept.signed or _source_signed(part))
                yield from _narrowed(part, Shape(min(room, len(part)), sign), when)
            place += len(part)
    elif isinstance(value, SwitchValue):
        earlier: Value = Const(0, 1)
        for patterns, chosen in value.cases:
            match = Const(1, 1) if patterns is None else value.test.matches(*patterns)
            yield from _narrowed(chosen, kept, when & match & ~earlier)
            earlier = earlier | match


def _in_operator(value: Operator, kept: Shape, when: Value) -> Iterator[tuple[str, Value, Value, Shape]]:
    operands = value.operands
    if value.operator in ARITHMETIC and len(operands) == 2:
        if not _holds(kept, value.shape()):
            yield ARITHMETIC[value.operator], value, when, kept
    elif value.operator in ("s", "u"):
        (inner,) = operands
        whole = kept.width >= len(inner)
        yield from _narrowed(inner, Shape(len(inner), value.operator == "s") if whole else kept, when)
        return
    bitwise = value.operator in ("&", "|", "^", "~")
    for operand in operands:
        yield from _narrowed(operand, _cut(operand.shape(), kept.width) if bitwise else operand.shape(), when)


def _source_signed(value: Value) -> bool:
    while isinstance(value, Slice):
        value = value.value
    return value.shape().signed


def _cut(shape: Shape, width: int) -> Shape:
    """A shape of no more bits than `width`."""
    return shape if shape.width <= width else Shape(width, shape.signed and width > 0)


def _holds(kept: Shape, shape: Shape) -> bool:
    """Whether every value of `shape` is a value of `kept`."""
    if shape.signed:
        return kept.signed and kept.width >= shape.width
    return kept.width - kept.signed >= shape.width


def _line(statement: Statement) -> str:
    file, line = statement.src_loc
    return f"{Path(file).name}:{line}"
