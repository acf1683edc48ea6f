# amaranth: UnusedElaboratable=no
"""No adder overflows: every `Narrowing` of a unit, and how it is known to keep its value.

In this order: by `ranges`, at full width, for all inputs and all times; as a wrap that is intended (`INTENDED`); by an
argument on paper (`ARGUED`); what is left, by the solver, by induction with `sim_tests.formal.invariants`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import Assert, ClockDomain, Const, Fragment, Module, Mux, Signal, Value
from amaranth.hdl._ast import AnySeq, Operator

from rtl.stream import StreamUnit
from sim_tests.formal.adders import Narrowing, instrument, narrowings, signals_of
from sim_tests.formal.invariants import invariants
from sim_tests.formal.ranges import Limit, ranges_of

_RING = "place in a ring of a power of two words: counts modulo its depth"
_QUEUE = dict.fromkeys(("reserved", "pushed", "popped", "waiting"), _RING)
_BUFFER = dict.fromkeys(("write_position", "read_position", "held"), _RING)

INTENDED: dict[str, dict[str, str]] = {
    "log_softmax": {
        **{f"{queue}.{name}": why for queue in ("maxima", "sums") for name, why in _QUEUE.items()},
        **{f"{buffer}.{name}": why for buffer in ("scores", "differences") for name, why in _BUFFER.items()},
        "ratio.code_0": "saturates: where the bits cut off are not 0, the code is replaced",
    },
    "layernorm": {
        **_BUFFER,
        "sums.row_squares": "C*S2 modulo 4**digits: only D = C*S2 - S1**2, which is smaller, is made of it",
        "variance.difference": "two bits of D and a borrow: subtraction modulo 8",
        "variance.pair": "starts at -1, so that the first step makes it 0",
        "root.remaining": "0 - 1 in the last step; loaded before it is read again",
    },
}
"""Narrowings that change a value on purpose, by kind and name, with the reason."""


@dataclass(frozen=True)
class Argument:
    """Why a narrowing keeps its value, for a reason that goes across a row.

    Attributes
    ----------
    reason : str
    live : callable
        From the unit and its signals by name to what is high while that which is added belongs to an element of a
        row; at other times a pipeline computes with anything.
    meant : callable
        From the operator to the number that its result stands for, where that is not the result itself.
    """

    reason: str
    live: Callable[[Any, Mapping[str, Signal]], Value]
    meant: Callable[[Operator], Value] = lambda result: result

    def holds(self, narrowing: Narrowing, live: Value) -> Value:
        """Whether the bits kept are the number meant, or nothing of a row is there."""
        low = narrowing.result[: narrowing.kept.width]
        number = low.as_signed() if narrowing.kept.signed else low
        return ~(live & narrowing.when) | (number == self.meant(narrowing.result))


def _base_and_octave(result: Operator) -> Value:
    """All ones are -1, see `rtl.log2_ratio.ExponentialFormat.words`."""
    base, octave = result.operands
    return Mux(base.all(), -1, base) + octave


def _coded(signals: Mapping[str, Signal], stage: int) -> Value:
    """Whether an element is in that stage of the last pass; a lane that is not kept is no part of the sum."""
    return signals[f"coded_{stage}"] & signals[f"coded_marks_{stage}"][0]


_BASE = Argument(
    "base -1 stands as all ones, only of an E above 2/3 of 2**X; then 2*S + E >= 3*E has an octave of 1 at least",
    lambda unit, signals: _coded(signals, 3),
    _base_and_octave,
)

ARGUED: dict[str, dict[str, Argument]] = {
    "log_softmax": {
        "difference": Argument(
            "the maximum of a row minus an element of that row is from 0 up",
            lambda unit, signals: signals["score_placed"],
        ),
        "ratio.base_0": _BASE,
        "ratio.base_0_1": _BASE,
        "ratio.code_0": Argument(
            "the base of a row's element is at most 2**code_bits + top_octave, and one more fits",
            lambda unit, signals: _coded(signals, unit._ratio.latency),
        ),
    },
    "layernorm": {
        "deviation_0": Argument(
            "C*X - S1 is a sum of C - 1 differences of two elements of a row", lambda unit, signals: signals["valid_2"]
        ),
    },
}
"""Narrowings that keep their value for a reason that goes across a row, by kind and name.

Whether the reason is right the solver only checks on the small unit: bounded, for all inputs. A name that is in
`INTENDED` as well stands for the narrowing here that keeps most bits, and there for the others.
"""

BY_ROW_LENGTH = {
    "log2_matmul": ("accumulate.total_0",),
    "adalog_matmul": ("accumulate.total_0",),
    "log_sqrt2_sums": ("accumulate.total_0", "accumulate.total_1"),
}
"""Sums that fit for rows as long as the unit is built for, by kind; free inputs, as here, make endless rows."""


@dataclass(frozen=True)
class Finding:
    """A narrowing and how it is known to keep its value.

    Attributes
    ----------
    name, operator, line : str
    bits : str
        Width of the result and of what is kept.
    method : {"ranges", "precondition", "intended", "argued", "induction"}
        "precondition": the range, if a sum stays in the bounds that `golden` gives it.
    reason : str
        The range, or why; empty for inductions.
    """

    name: str
    operator: str
    line: str
    bits: str
    method: str
    reason: str


def findings(unit: StreamUnit, limits: Mapping[str, Limit]) -> list[Finding]:
    """Every narrowing of a unit with its method; inductions are still to be made."""
    fragment = Fragment.get(unit, None)
    ranges = ranges_of(fragment, limits)
    bounded = any(isinstance(limit, tuple) for limit in limits.values())
    terms = {name: limit for name, limit in limits.items() if isinstance(limit, int)}
    free = ranges_of(fragment, terms) if bounded else ranges
    known = _Known(unit, fragment)
    found = []
    for narrowing in narrowings(fragment):
        low, high = ranges.interval(narrowing.result)
        if ranges.fits(narrowing):
            method = "precondition" if bounded and not free.fits(narrowing) else "ranges"
            reason = f"{low}..{high}"
        elif argument := known.argument(narrowing):
            method, reason = "argued", argument.reason
        elif reason := known.intention(narrowing):
            method = "intended"
        else:
            method = "induction"
        kept = narrowing.kept
        bits = f"{len(narrowing.result)} to {kept.width}{' signed' if kept.signed else ''}"
        found.append(Finding(narrowing.name, narrowing.operator, narrowing.line, bits, method, reason))
    return found


def instrumented(unit: StreamUnit, top: str, wanted: Collection[str] | None) -> str:
    """RTLIL of a unit with free inputs, an assertion at narrowings, and, if some are wanted, the invariants.

    Parameters
    ----------
    top : str
        Name of the module.
    wanted : collection of str, optional
        Names of the narrowings; without it all but those of `INTENDED` and `BY_ROW_LENGTH`, those of `ARGUED` while
        something of a row is there.
    """
    fragment = Fragment.get(unit, None)
    known = _Known(unit, fragment)
    own = signals_of(fragment)

    def condition(found: Narrowing) -> Value | None:
        if wanted is not None:
            return found.fits if found.name in wanted else None
        if argument := known.argument(found):
            return argument.holds(found, argument.live(unit, own))
        if known.intention(found) or found.name in BY_ROW_LENGTH.get(known.kind, ()):
            return None
        return found.fits

    instrument(fragment, condition, lambda signals: invariants(unit, signals) if wanted is not None else iter(()))
    m = Module()
    clock, reset = Signal(name="clk"), Signal(name="reset")
    m.domains.sync = domain = ClockDomain("sync")
    domain.clk, domain.rst = clock, reset
    m.submodules.unit = fragment
    inputs = [reset, unit.i.valid, unit.o.ready, Value.cast(unit.i.payload)]
    if unit.loadable:
        inputs += [unit.w.valid, Value.cast(unit.w.payload)]
    m.d.comb += [signal.eq(AnySeq(len(signal))) for signal in inputs]
    m.d.comb += Assert(Const(1, 1), "there is something to ask")
    return rtlil.convert(m, name=top, ports=[clock], emit_src=False)


class _Known:
    """What `INTENDED` and `ARGUED` say of the narrowings of a unit."""

    def __init__(self, unit: StreamUnit, fragment: Fragment) -> None:
        self.kind = getattr(getattr(unit, "spec", None), "kind", "")
        self._most_bits: dict[str, int] = {}
        for narrowing in narrowings(fragment):
            self._most_bits[narrowing.name] = max(self._most_bits.get(narrowing.name, 0), narrowing.kept.width)

    def argument(self, narrowing: Narrowing) -> Argument | None:
        found = ARGUED.get(self.kind, {}).get(narrowing.name)
        shared = narrowing.name in INTENDED.get(self.kind, {})
        return None if shared and narrowing.kept.width < self._most_bits[narrowing.name] else found

    def intention(self, narrowing: Narrowing) -> str:
        return "" if self.argument(narrowing) else INTENDED.get(self.kind, {}).get(narrowing.name, "")
