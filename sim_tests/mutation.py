"""Mutation run: builds small faults into a unit and sees whether the standard stimulus notices each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from golden.errors import HwsimError
from golden.vectors import UnitVectors
from rtl import axi, catalog, verilog, verilog_writer
from rtl.stream import StreamUnit
from sim_tests.beats import Beats
from sim_tests.bulk import patience
from sim_tests.bulk_build import build_library
from sim_tests.bulk_model import BulkModel
from sim_tests.compare import Expected, compare
from sim_tests.equivalence import Equivalence, rules_of
from sim_tests.inputs import boundaries, corners, exhaustive, other_constants
from sim_tests.mutants import PORT, Mutant, build_in, mutants_of, sample
from sim_tests.scaling_inputs import hard_scalings
from sim_tests.simulate import Play
from sim_tests.stimulus import beat_bits, constant_words, stimulus
from sim_tests.toolchain import find_toolchain

# Choices of constants that no network made, for each layer.
_OTHERS = 8


@dataclass(frozen=True)
class Step:
    """One part of the standard stimulus.

    Attributes
    ----------
    name : str
    layer : UnitVectors
    play : Play
    expected : Expected or None
        None where a reset will fall into the middle of it and nothing is compared.
    stall_seed : int or None
    reset : bool
        Whether a reset comes before.
    """

    name: str
    layer: UnitVectors
    play: Play
    expected: Expected | None
    stall_seed: int | None
    reset: bool


@dataclass(frozen=True)
class Verdict:
    """One mutant.

    Attributes
    ----------
    number : int
        That selects it in the model.
    mutant : Mutant
    killed_by : str
        The first step that noticed it, and how; empty where it survived.
    slower : bool
        It survived: all results are right, but some come in another cycle when there are stalls.
    same : bool
        It survived and is proven to compute the same (`sim_tests.equivalence`).
    """

    number: int
    mutant: Mutant
    killed_by: str
    slower: bool
    same: bool = False


@dataclass(frozen=True)
class MutationResult:
    """A unit's mutants.

    Attributes
    ----------
    unit, module : str
    possible : int
        Mutants that the unit has.
    verdicts : tuple of Verdict
        Of those that were tried.
    steps : int
        Of the standard stimulus.
    verilog : Path
        The unit with all its mutants.
    """

    unit: str
    module: str
    possible: int
    verdicts: tuple[Verdict, ...]
    steps: int
    verilog: Path

    @property
    def killed(self) -> int:
        return sum(bool(verdict.killed_by) for verdict in self.verdicts)

    @property
    def same(self) -> int:
        return sum(verdict.same for verdict in self.verdicts)

    @property
    def survivors(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if not verdict.killed_by]


def standard_stimulus(unit: StreamUnit, layers: Sequence[UnitVectors]) -> Iterator[Step]:
    """What every unit is tested with: activations, corners and the whole input space where it is small.

    Of each layer: rows of each length at full rate and stalled; the given activations stalled; the input space
    at full rate; a reset in the middle of a row; rows longer than the unit was built for; constants that no
    network chose. Layers alternate, so that constants change.

    Parameters
    ----------
    layers : sequence of UnitVectors
        Dumped activations, some rows are enough.
    """
    padding = np.random.default_rng(0)
    seed = 0
    for layer in layers:
        for vectors in corners(layer):
            play, expected = stimulus(unit, vectors, padding)
            play = replace(play, beats=_split_keeps(unit, play.beats, padding))
            length = vectors.inputs[0].shape[-1]
            for stalls in (None, seed := seed + 1):
                yield Step(f"rows of {length}", vectors, play, expected, stalls, reset=False)
            joined = _overlong(unit, play, expected, length)
            if joined is not None:
                yield Step("rows too long", vectors, joined, expected, seed + 1, reset=False)
            # A reset while rows are inside, then everything again.
            for part in range(1, 7):
                cut = replace(play, beats=play.beats[: len(play.beats) * part // 7 + 1])
                yield Step("interrupted", vectors, cut, None, seed + part if part % 3 else None, reset=False)
                yield Step("after a reset", vectors, play, expected, None if part % 2 else seed, reset=True)
    for layer in reversed(layers):
        for stalls in (seed := seed + 1, None):
            yield _step("activations", unit, layer, padding, stalls)
        space = exhaustive(layer)
        for stalls in (None, seed := seed + 1):
            if space is not None:
                yield _step("input space", unit, space, padding, stalls)
        for vectors in boundaries(layer):
            yield _step("boundaries", unit, vectors, padding, None)
        for number, vectors in enumerate(hard_scalings(layer)):
            if _takes(unit, vectors):
                yield _step("hard scalings", unit, vectors, padding, seed + number if number % 2 else None)
        for number in range(_OTHERS):
            other = other_constants(layer, number)
            if other is None or not _takes(unit, other):
                continue
            found = [other, *corners(other, number), exhaustive(other)]
            for vectors in (vectors for vectors in found if vectors is not None):
                yield _step("other constants", unit, vectors, padding, seed + number if number % 2 else None)


def _step(
    name: str, unit: StreamUnit, layer: UnitVectors, padding: np.random.Generator, stall_seed: int | None
) -> Step:
    play, expected = stimulus(unit, layer, padding)
    return Step(name, layer, play, expected, stall_seed, reset=False)


def _takes(unit: StreamUnit, layer: UnitVectors) -> bool:
    """Whether the constants fit the unit, which was built for others."""
    try:
        constant_words(unit, layer)
    except (HwsimError, OverflowError):
        return False
    return True


def _split_keeps(unit: StreamUnit, packed: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    """Keep some bytes, but not all, of lanes without an element: that makes none."""
    size = beat_bits(unit).in_bytes // unit.lanes
    if size == 1:
        return packed
    beats, _ = Beats.unpacked(packed, unit.lanes, size)
    keep = dice.random((*beats.keep.shape, size)) < 0.5
    keep[..., 0] &= ~keep.all(axis=2)
    keep |= beats.keep[..., None]
    flags = np.column_stack([keep.reshape(len(packed), -1), beats.last])
    return np.column_stack([packed[:, : unit.lanes * size], np.packbits(flags, axis=1, bitorder="little")])


def _overlong(unit: StreamUnit, play: Play, expected: Expected, length: int) -> Play | None:
    """Beats whose rows do not end where the unit ends them by itself, with the same results."""
    per_row = -(-length // unit.lanes)
    byte, bit = _last_flag(unit)
    if unit.spec.kind == "log_softmax" and length == unit.spec.row_length and length % unit.lanes == 0:
        beats = play.beats.copy()
        ends = np.arange(len(beats)) % (3 * per_row) == 3 * per_row - 1
        ends[-1] = True
        beats[~ends, byte] &= np.uint8(0xFF ^ 1 << bit)
        return replace(play, beats=beats)
    if unit.spec.kind == "layernorm":
        rows = play.beats.reshape(-1, per_row, play.beats.shape[1])
        extra = rows[:, -1:].copy()  # past the last channel: dropped
        rows = rows.copy()
        if length % unit.lanes:
            return None
        rows[:, -1, byte] &= np.uint8(0xFF ^ 1 << bit)
        longer = np.concatenate([rows, np.roll(extra, 1, axis=0)], axis=1)
        return replace(play, beats=longer.reshape(-1, play.beats.shape[1]))
    return None


def _last_flag(unit: StreamUnit) -> tuple[int, int]:
    """Byte and bit of tlast in a packed beat (`sim_tests.beats`)."""
    size = beat_bits(unit).in_bytes
    return size + size // 8, size % 8


class _Judge:
    """Plays the standard stimulus to one mutant after the other."""

    def __init__(self, unit: StreamUnit, folder: Path, steps: Sequence[Step]):
        self.unit, self.folder, self.steps = unit, folder, steps
        self.bits = beat_bits(unit)
        self.element = axi.element_of(unit.o.payload)

    def killed_by(self, mutant: int) -> tuple[str, list[np.ndarray]]:
        """The first step that notices a mutant, or nothing; and the cycles of all results up to there."""
        given_at: list[np.ndarray] = []
        with BulkModel(self.folder, self.bits, patience=patience(self.unit), mutant=mutant) as model:
            for step in self.steps:
                if step.reset:
                    model.reset()
                played, unstable, finished = model.play(step.play, step.stall_seed, breaks_off=step.expected is None)
                given_at.append(played.given_at)
                if step.expected is None:
                    continue
                wrong, first = compare(step.layer, self.element, step.expected, played, unstable, model.cycle)
                if wrong:
                    return f"{step.name}: {first}", given_at
                if not finished:
                    return f"{step.name}: stuck", given_at
                if step.stall_seed is None and not self._in_time(step, played.taken_at, played.given_at):
                    return f"{step.name}: too slow", given_at
        return "", given_at

    def _in_time(self, step: Step, taken_at: np.ndarray, given_at: np.ndarray) -> bool:
        """Whether rows come as often as the unit's formula says, at full rate."""
        assert step.expected is not None
        ends = given_at[step.expected.beats.last]
        pace = self.unit.cycles_per_row(step.layer.inputs[0].shape[-1])
        return bool((np.diff(ends) == pace).all())


def run_mutation(
    layers: Sequence[UnitVectors],
    *,
    name: str,
    lanes: int,
    count: int,
    seed: int,
    build_dir: Path,
    prove: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> MutationResult:
    """Build a sample of mutants into one unit and play the standard stimulus to each.

    Parameters
    ----------
    layers : sequence of UnitVectors
        Layers that one unit serves, with activations.
    name : str
        Module name.
    count, seed : int
        Of the sample.
    prove : bool
        Try to prove of each survivor that it computes the same.
    progress : callable
        Called with 1 after each mutant.

    Raises
    ------
    HwsimError
        The unit without a mutant fails; a tool is missing or fails.
    """
    tools = find_toolchain()
    unit = catalog.covering([(layer.spec, layer.constants) for layer in layers], lanes=lanes)
    flat = verilog.flat_netlist(unit, name)
    possible = mutants_of(flat)
    chosen = sample(possible, count, seed)
    ports = {port.name: port.meaning for port in axi.ports(unit)} | {PORT: "0: none"}
    text = verilog_writer.write(build_in(flat, chosen), ports, [f"{name} with {len(chosen)} mutants"])
    folder = build_library(
        text, name, beat_bits(unit), loadable=unit.loadable, build_dir=build_dir, tools=tools, mutants=True
    )
    steps = list(standard_stimulus(unit, layers))
    judge = _Judge(unit, folder, steps)
    fault, normal = judge.killed_by(0)
    if fault:
        raise HwsimError(f"{name} fails without a mutant ({fault}); mend it first, `hwsim cosim` shows where")
    verdicts = []
    for number, mutant in enumerate(chosen, 1):
        killed_by, given_at = judge.killed_by(number)
        slower = not killed_by and any(not np.array_equal(*pair) for pair in zip(given_at, normal, strict=True))
        verdicts.append(Verdict(number, mutant, killed_by, slower))
        progress(1)
    if prove and not all(verdict.killed_by for verdict in verdicts):
        proof = Equivalence(folder / f"{name}.v", build_dir / f"{name}-proof", rules=rules_of(unit, name, layers))
        verdicts = [replace(verdict, same=not verdict.killed_by and proof.same(verdict.number)) for verdict in verdicts]
    return MutationResult(unit.spec.kind, name, len(possible), tuple(verdicts), len(steps), folder / f"{name}.v")
