"""Drives a stream unit in Amaranth's simulator: constants, then rows, with random stalls.

Checks the stream contract of `rtl.stream` on the way: payload and valid stay put
until taken, valid does not wait for ready, lanes fill from 0 up and only the last
beat may be partial. Lanes that hold no element are fed random bits.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from amaranth.hdl import Shape, Value
from amaranth.lib import data
from amaranth.sim import Simulator

Element = Any  # an int, or a dict or data.Const for elements that are structures


@dataclass
class Phase:
    """Constants to write while the unit is empty, then rows of elements to stream through it.

    Attributes
    ----------
    rows : sequence of sequences of elements
    writes : sequence of (address, data)
    """

    rows: Sequence[Sequence[Element]]
    writes: Sequence[tuple[int, int]] = ()


@dataclass
class Row:
    """A row that came out, with the cycles at which its beats were taken (`out_cycles`).

    `first_in`, `last_in` are the cycles at which the first and last beat of the input row
    of the same number were taken.
    """

    elements: list[Any] = field(default_factory=list)
    out_cycles: list[int] = field(default_factory=list)
    first_in: int = -1
    last_in: int = -1


def run(
    dut: Any,
    phases: Sequence[Phase],
    *,
    stall_in: float = 0.0,
    stall_out: float = 0.0,
    seed: int = 0,
    patience: int = 20_000,
) -> list[list[Row]]:
    """Stream `phases` through a unit with ports ``i``, ``o`` and, for writes, ``w``.

    Parameters
    ----------
    stall_in, stall_out : float
        Chance that a cycle offers no beat, or takes none.
    seed : int
        Of the stalls and of the bits in empty lanes.
    patience : int
        Cycles without a transfer after which the unit counts as stuck.

    Returns
    -------
    list of list of Row
        One list a phase, one output row for each input row.

    Raises
    ------
    AssertionError
        The stream contract is broken or the unit is stuck.
    """
    results: list[list[Row]] = []

    async def bench(ctx: Any) -> None:
        dice = random.Random(seed)
        cycle = 0
        for phase in phases:
            for address, word in phase.writes:
                ctx.set(dut.w.payload, {"address": address, "data": word})
                ctx.set(dut.w.valid, 1)
                await ctx.tick()
                cycle += 1
            if phase.writes:
                ctx.set(dut.w.valid, 0)
            beats = _beats(dut.i.payload.shape(), phase.rows, dice)
            rows = [Row() for _ in phase.rows]
            results.append(rows)
            next_beat, offered, row_out, idle, patient = 0, False, 0, 0, False
            held: Any = None
            while row_out < len(rows):
                if not offered and next_beat < len(beats) and dice.random() >= stall_in:
                    ctx.set(dut.i.payload, beats[next_beat][1])
                    offered = True
                ctx.set(dut.i.valid, offered)
                # A patient consumer raises ready only once it has seen valid, which must not deadlock.
                ready = dice.random() >= stall_out and not (patient and held is None)
                ctx.set(dut.o.ready, ready)
                _, _, taken, valid, payload = await ctx.tick().sample(dut.i.ready, dut.o.valid, dut.o.payload)
                idle += 1
                if offered and taken:
                    row = rows[beats[next_beat][0]]
                    row.first_in = cycle if row.first_in < 0 else row.first_in
                    row.last_in = cycle
                    next_beat, offered, idle = next_beat + 1, False, 0
                if held is not None:
                    assert valid, f"cycle {cycle}: valid fell before the beat was taken"
                    assert payload.as_bits() == held.as_bits(), f"cycle {cycle}: payload changed before it was taken"
                held = payload if valid and not ready else None
                if valid and ready:
                    idle = 0
                    _collect(rows[row_out], payload, cycle)
                    if payload["last"]:
                        row_out += 1
                        patient = stall_out > 0 and dice.random() < 0.5
                assert idle < patience, f"cycle {cycle}: no beat went in or out for {patience} cycles (row {row_out})"
                cycle += 1
            assert next_beat == len(beats), f"{len(beats) - next_beat} input beats were never taken"
            ctx.set(dut.i.valid, 0)
            ctx.set(dut.o.ready, 0)

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    return results


def _beats(layout: Any, rows: Sequence[Sequence[Element]], dice: random.Random) -> list[tuple[int, Any]]:
    """Beats of rows as (row number, payload)."""
    lanes, element = layout["data"].shape.length, layout["data"].shape.elem_shape
    beats = []
    for number, row in enumerate(rows):
        for start in range(0, len(row), lanes):
            part = list(row[start : start + lanes])
            keep = (1 << len(part)) - 1
            part += [_random_element(element, dice) for _ in range(lanes - len(part))]
            last = start + lanes >= len(row)
            beats.append((number, layout.const({"data": part, "keep": keep, "last": last})))
    return beats


def _random_element(element: Any, dice: random.Random) -> Any:
    if isinstance(element, data.Layout):
        return element.from_bits(dice.getrandbits(element.size))
    shape = Shape.cast(element)
    bits = dice.getrandbits(shape.width)
    return bits - (1 << shape.width) if shape.signed and bits >> (shape.width - 1) else bits


def _collect(row: Row, payload: Any, cycle: int) -> None:
    """Append the kept elements of an output beat."""
    keep, lanes = payload["keep"], payload.shape()["data"].shape.length
    count = keep.bit_length()
    assert keep == (1 << count) - 1 and count > 0, f"cycle {cycle}: keep {keep:b} does not fill from lane 0 up"
    assert payload["last"] or count == lanes, f"cycle {cycle}: keep {keep:b} is partial before the last beat"
    row.elements += [payload["data"][lane] for lane in range(count)]
    row.out_cycles.append(cycle)


def evaluate(expressions: Sequence[Value], inputs: Sequence[tuple[Any, Sequence[int]]]) -> list[list[int]]:
    """Values of combinational expressions for each step of the inputs' value lists."""
    results: list[list[int]] = []

    async def bench(ctx: Any) -> None:
        for step in range(len(inputs[0][1])):
            for signal, values in inputs:
                ctx.set(signal, values[step])
            results.append([ctx.get(expression) for expression in expressions])

    from amaranth.hdl import Module

    simulator = Simulator(Module())
    simulator.add_testbench(bench)
    simulator.run()
    return results
