"""What registers of a unit hold at all times: the invariants with which an induction about its adders closes.

Each is asserted, never assumed: the solver proves it along with what follows from it. Signals are named as in `rtl`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from amaranth.hdl import Const, Mux, Signal, Value

from rtl.layernorm import LayerNorm
from rtl.stream import StreamUnit

Claims = Iterator[tuple[str, Value]]


def invariants(unit: StreamUnit, signals: Mapping[str, Signal]) -> Claims:
    """Invariants of a part of a unit.

    Parameters
    ----------
    unit : StreamUnit
        The whole.
    signals : mapping
        Signals that the part reads or writes, by name.

    Yields
    ------
    text, claim
    """
    yield from _counters(unit, signals)
    yield from _digit_multiplier(signals)
    yield from _left_shifter(signals)
    if isinstance(unit, LayerNorm):
        yield from _row_sums(unit, signals)
        yield from _root(unit, signals)


def _counters(unit: StreamUnit, signals: Mapping[str, Signal]) -> Claims:
    """Counters of the beats of a row."""
    beats = -(-getattr(unit.spec, "channels", 1) // unit.lanes)
    for name in ("beat", "beat_of_row"):
        if beats > 1 and name in signals:
            yield f"{name} exceeds {beats - 1}", signals[name] <= beats - 1


def _digit_multiplier(signals: Mapping[str, Signal]) -> Claims:
    """A sum is ``value * d``, where d and the digits below are the leading and the other digits of a factor.

    With a factor of f bits, p digits below, and ``offset`` of them as `rtl.digit_multiplier` adds it, d is from 0 to
    ``2**(f - 2*p)``; it is 0 only where the digits below reach the offset, and the largest only where they do not.
    """
    if "digits" not in signals or "values" not in signals:
        return
    digits, factor_bits = signals["digits"], len(signals["digits"]) - 1
    offset = _offset(factor_bits // 2)
    inside = (digits >= offset) & (digits < offset + (1 << factor_bits))
    yield "digits are of no factor", inside | (Value.cast(signals["values"]) == 0)
    for place in range(1, factor_bits // 2):
        total, value = signals[f"lane0_sum_{place}"], signals[f"lane0_value_{place}"]
        below = signals[f"digits_below_{place}"] < _offset(place)
        least = Mux(below, value, 0)
        most = (value << (factor_bits - 2 * place)) - Mux(below, 0, value)
        between = Mux(value >= 0, (least <= total) & (total <= most), (most <= total) & (total <= least))
        yield f"{total.name} is no multiple of the value by digits of a factor", between


def _offset(digits: int) -> int:
    return sum(2 << 2 * place for place in range(digits))


def _left_shifter(signals: Mapping[str, Signal]) -> Claims:
    """A shifted value whose low t bits are not all 0 was shifted by less than t."""
    reached = sorted(
        (int(found[1]), signal)
        for name, signal in signals.items()
        if (found := re.fullmatch(r"lane0_shifted_up_to_(\d+)", name))
    )
    for reach, signal in reached:
        if signal.shape().signed:
            continue
        bits = len(signal) - reach
        for distance in range(1, reach + 1):
            claim = ~signal[:distance].any() | ~signal[bits + distance - 1 :].any()
            yield f"{signal.name} has low bits under a long shift", claim


def _row_sums(unit: LayerNorm, signals: Mapping[str, Signal]) -> Claims:
    """X and its multiple stay side by side, within their largest magnitudes."""
    widths, spec = unit.widths, unit.spec
    codes = (1 << spec.input_bits) - 1 + (1 << spec.input_bits)
    limits = {"difference_0": codes, "difference_0_2": codes}
    limits |= dict.fromkeys(("value_0", "value_0_4", "squared_0"), widths.value_limit)
    for name, limit in limits.items():
        if name in signals and "squared_multiple_0" in signals:
            yield f"{name} exceeds {limit}", (signals[name] <= limit) & (signals[name] >= -limit)
    for multiple, value in (("multiple_0", "value_0_4"), ("squared_multiple_0", "squared_0")):
        if multiple in signals and value in signals:
            claim = signals[multiple] == signals[value] * widths.odd
            yield f"{multiple} is not {widths.odd} times {value}", claim


def _root(unit: LayerNorm, signals: Mapping[str, Signal]) -> Claims:
    """While steps remain, the mantissa has no more bits than were put in, after the first, or shifted in before."""
    names = ("root_rest", "quotient_pair", "remaining", "mantissa", "idle", "done", "row")
    if not all(name in signals for name in names):
        return
    root = unit._root
    root_rest, quotient_pair, remaining, mantissa, idle, done, row = (signals[name] for name in names)
    working = ~idle & ~done
    empty = (root_rest == 0) & (quotient_pair == 0)
    yield "the first step is not of an empty pair", ~working | (remaining != root.steps - 1) | empty
    yield "remaining exceeds the steps", ~working | (remaining < root.steps)
    pair = root.i.payload.shape()["pair"]
    fine_bits = root.fine_bits
    fine = ~Value.cast(row)[pair.offset : pair.offset + fine_bits] if fine_bits else Const(0, 1)
    for step in range(root.steps):
        earlier = range(step + 1, root.steps)
        # The bit of the first step, of an empty pair, is 0.
        bits = max(sum(at >= root.longest_shift and _gives_a_bit(unit, at) for at in earlier) - 1, 0)
        for shift in range(1 << fine_bits):
            most = bits + sum(at < shift for at in earlier)
            here = working & (remaining == step) & (fine == shift)
            yield "mantissa has more bits than steps gave it", ~here | (mantissa < 1 << most)


def _gives_a_bit(unit: LayerNorm, remaining: int) -> bool:
    """A bit of the root comes in each step, or in every other one where the quotient comes bit by bit."""
    root = unit._root
    return root.quotient_bits == 2 or remaining % 2 == root.longest_shift % 2
