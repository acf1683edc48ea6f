# amaranth: UnusedElaboratable=no
"""No adder overflows: every `Narrowing` of a unit, and how it is known to keep its value.

In this order: by `ranges`, at full width, for all inputs and all times; as a wrap that is intended (`INTENDED`); by an
argument on paper (`ARGUED`); what is left, by the solver, by induction with `sim_tests.formal.invariants`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from amaranth.back import rtlil
from amaranth.hdl import Assert, ClockDomain, Const, Fragment, Module, Signal, Value
from amaranth.hdl._ast import AnySeq

from rtl.stream import StreamUnit
from sim_tests.formal.adders import Narrowing, instrument, narrowings
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

ARGUED: dict[str, dict[str, tuple[str, str]]] = {
    "log_softmax": {
        "difference": ("score_placed", "the maximum of a row minus an element of that row is from 0 up"),
    },
    "layernorm": {
        "deviation_0": ("valid_2", "C*X - S1 is a sum of C - 1 differences of two elements of a row"),
    },
}
"""Narrowings that keep their value for a reason that goes across a row, by kind and name, while a signal is high.

Whether the reason is right the solver only checks on the small unit: bounded, for all inputs.
"""

BY_ROW_LENGTH = {"log2_matmul": "accumulate.total_0", "adalog_matmul": "accumulate.total_0"}
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
    kind = getattr(getattr(unit, "spec", None), "kind", "")
    found = []
    for narrowing in narrowings(fragment):
        low, high = ranges.interval(narrowing.result)
        if ranges.fits(narrowing):
            method = "precondition" if bounded and not free.fits(narrowing) else "ranges"
            reason = f"{low}..{high}"
        elif reason := INTENDED.get(kind, {}).get(narrowing.name, ""):
            method = "intended"
        elif narrowing.name in ARGUED.get(kind, {}):
            method, reason = "argued", ARGUED[kind][narrowing.name][1]
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
        their signal is high.
    """
    fragment = Fragment.get(unit, None)
    kind = getattr(getattr(unit, "spec", None), "kind", "")

    def condition(found: Narrowing, signals: Mapping[str, Signal]) -> Value | None:
        if wanted is not None:
            return Const(1, 1) if found.name in wanted else None
        if found.name in INTENDED.get(kind, {}) or found.name == BY_ROW_LENGTH.get(kind):
            return None
        gate = ARGUED.get(kind, {}).get(found.name)
        return signals[gate[0]] if gate else Const(1, 1)

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
