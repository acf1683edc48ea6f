"""Inputs for `requantize` that are computed from its constants: ties, what lies beside them, and sums far outside.

A multiplier of full width and a large shift hide almost every error of a low bit: only a product next to
k + 1/2 codes shows it. Here such products are looked for, for multipliers of every digit and all shifts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from golden.errors import HwsimError
from golden.requantize import RequantizeSpec
from golden.vectors import UnitVectors
from sim_tests.inputs import EXHAUSTIVE_BITS, vectors_for

# Inputs for one multiplier and shift, and elements of a row where one channel stands for any.
_ROWS, _ROW_LENGTH = 512, 64
# Of the products on each side of a tie, and of the ties that go up and down.
_NEAREST = 32


def hard_scalings(layer: UnitVectors, seed: int = 0) -> Iterator[UnitVectors]:
    """Vectors for many choices of multiplier, shift and zero point, each with its hardest inputs.

    Per choice: exact ties to even and to odd codes, the products that come nearest to a tie from both sides,
    quotients that fall into the range of codes once their upper bits are lost, the extremes, powers of two
    and random values. A layer of several channels takes as many choices at a time. Other kinds have none.
    """
    spec = layer.spec
    if not isinstance(spec, RequantizeSpec):
        return
    dice = np.random.default_rng(seed)
    pairs = _pairs(spec, dice)
    pairs += pairs[: -len(pairs) % spec.channels]
    for first in range(0, len(pairs), spec.channels):
        chosen = pairs[first : first + spec.channels]
        multipliers, shifts = (np.array(column) for column in zip(*chosen, strict=True))
        highest = spec.output.maximum
        zero = int(dice.choice([0, 1, highest, -highest, int(dice.integers(-highest, highest + 1))]))
        constants = {"multiplier": multipliers, "shift": shifts, "zero_point": np.array(zero)}
        try:
            checked = spec.check_constants(constants, layer.layer)
        except HwsimError:
            continue
        columns = [_hard_inputs(spec, multiplier, shift, zero, dice) for multiplier, shift in chosen]
        # One channel stands for rows of any length.
        inputs = columns[0].reshape(1, -1, _ROW_LENGTH) if spec.channels == 1 else np.stack(columns, axis=1)[None]
        yield vectors_for(replace(layer, constants=checked), inputs)


def _pairs(spec: RequantizeSpec, dice: np.random.Generator) -> list[tuple[int, int]]:
    """Multipliers of every length and with every single digit of two bits, each with a few shifts."""
    bits, longest = spec.multiplier_bits, (1 << spec.shift_bits) - 1
    highest = (1 << bits) - 1
    found = {
        0,
        1,
        highest,
        highest - 1,
        *(highest // 3 * factor for factor in (1, 2)),
        *(highest // 5 * f for f in (1, 4)),
    }
    for place in range(0, bits, 2):
        found |= {digit << place for digit in (1, 2, 3)} | {highest ^ digit << place for digit in (1, 2, 3)}
    for length in range(2, bits + 1):
        found |= {int(dice.integers(1 << length - 1, 1 << length)) for _ in range(3)}
    pairs = []
    for multiplier in sorted(value for value in found if value <= highest):
        # With this shift the largest input gives the largest codes.
        full = max(spec.input.bits + multiplier.bit_length() - spec.output_bits, 0)
        shifts = {0, full, int(dice.integers(0, full + 1)), int(dice.integers(0, full + spec.output_bits + 2))}
        if multiplier in (highest, 1 << bits - 1):
            shifts = set(range(spec.input.bits + bits + 2))
        pairs += [(multiplier, shift) for shift in sorted(shifts) if shift <= longest]
    return pairs


def _hard_inputs(spec: RequantizeSpec, multiplier: int, shift: int, zero: int, dice: np.random.Generator) -> np.ndarray:
    """Inputs for one channel, int64 [_ROWS]."""
    low, high = spec.input.minimum, spec.input.maximum
    powers = np.array([0, *(1 << place for place in range(spec.input.bits))])
    some = np.concatenate([powers, -powers, powers - 1, [low, high], dice.integers(low, high + 1, 32)])
    near = np.array(list(_far_outside(spec, multiplier, shift, zero)), dtype=np.int64)
    known = np.concatenate([some, near])
    chosen = known[(known >= low) & (known <= high)]
    if spec.input.bits <= EXHAUSTIVE_BITS:
        candidates = np.arange(low, high + 1)
    else:
        candidates = np.concatenate([chosen, dice.integers(low, high + 1, 1 << 16)])
        reach = min(((2 << spec.output_bits) << shift) // max(multiplier, 1), high)
        candidates = np.append(candidates, dice.integers(max(low, -reach), reach + 1, 1 << 16))
    hardest = _next_to_ties(spec, candidates, multiplier, shift, zero)
    found = np.unique(np.concatenate([hardest, chosen]))
    return dice.permutation(np.resize(found, _ROWS) if len(found) < _ROWS else dice.permutation(found)[:_ROWS])


def _next_to_ties(spec: RequantizeSpec, candidates: np.ndarray, multiplier: int, shift: int, zero: int) -> np.ndarray:
    """Those candidates whose products lie on a tie between two codes, or nearest to one."""
    if not shift:
        return candidates[:0]
    product = candidates.astype(np.int64) * multiplier + (zero << shift)
    code = product >> shift
    inside = (code >= -1) & (code <= spec.output.maximum)
    candidates, product, code = candidates[inside], product[inside], code[inside]
    beside = (product & ((1 << shift) - 1)) - (1 << shift - 1)
    found = [candidates[(beside == 0) & (code % 2 == parity)][:_NEAREST] for parity in (0, 1)]
    for side in (beside > 0, beside < 0):
        for parity in (0, 1):
            those = np.flatnonzero(side & (code % 2 == parity))
            found.append(candidates[those[np.argsort(abs(beside[those]), kind="stable")[:_NEAREST]]])
    return np.concatenate(found)


def _far_outside(spec: RequantizeSpec, multiplier: int, shift: int, zero: int) -> Iterator[int]:
    """Inputs whose quotient is a code plus or minus a power of two beyond all codes."""
    for place in range(spec.output_bits, spec.input.bits + spec.multiplier_bits + 1):
        for distance in (1 << place, -1 << place):
            for code in (0, 1, spec.output.maximum // 2, spec.output.maximum):
                exact = (distance + code - zero << shift) // max(multiplier, 1)
                if spec.input.minimum <= exact < spec.input.maximum:
                    yield from (exact, exact + 1)
