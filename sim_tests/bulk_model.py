"""A unit as a shared library, driven with whole arrays of beats."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import ClassVar

import numpy as np

from sim_tests.bulk_build import LIBRARY
from sim_tests.simulate import BeatBits, Play, Played

# Room for results that should not come, and for broken rules of the stream.
EXCESS = 64


class _Plan(ctypes.Structure):
    """``Plan`` of ``bulk.cpp``."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("words", "beats", "taken_at", "given_at", "given", "unstable")),
        *((name, ctypes.c_int64) for name in ("word_count", "beat_count", "expected")),
        *((name, ctypes.c_int64) for name in ("given_capacity", "unstable_capacity")),
        *((name, ctypes.c_int64) for name in ("patience", "stall_seed", "reset", "breaks_off")),
        *((name, ctypes.c_int64) for name in ("taken", "given_count", "unstable_count", "finished", "cycle")),
    ]


class BulkModel:
    """One model of a unit, with its state.

    Parameters
    ----------
    folder : Path
        Of `sim_tests.bulk_build.build_library`.
    bits : BeatBits
    patience : int
        Cycles without any transfer after which the unit counts as stuck.
    seed : int
        Of registers without a power-up value, and of what the inputs hold while nothing is offered.
    mutant : int
        Of a library with mutants; 0 is the unit as it is.
    """

    def __init__(self, folder: Path, bits: BeatBits, *, patience: int, seed: int = 1, mutant: int = 0):
        self.bits, self.patience = bits, patience
        self.cycle = 0
        self._reset_cycles = 4
        self._library = ctypes.CDLL(str(Path(folder) / LIBRARY))
        self._library.bulk_new.restype = ctypes.c_void_p
        self._library.bulk_new.argtypes = [ctypes.c_uint64]
        self._library.bulk_delete.argtypes = [ctypes.c_void_p]
        self._library.bulk_play.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Plan)]
        self._unit = self._library.bulk_new(seed)
        if hasattr(self._library, "bulk_mutant"):
            self._library.bulk_mutant.argtypes = [ctypes.c_void_p, ctypes.c_int64]
            self._library.bulk_mutant(self._unit, mutant)

    def play(
        self, play: Play, stall_seed: int | None = None, *, breaks_off: bool = False
    ) -> tuple[Played, list[int], bool]:
        """Load constants, send beats and wait for the results; the first call resets the unit.

        With `breaks_off` the call ends when the last beat is taken, whatever is on its way.

        Returns
        -------
        played : Played
        unstable : list of int
            Cycles in which a result changed before it was taken, or its valid depended on ready.
        finished : bool
            All came, and no more.
        """
        out_bytes = -(-self.bits.out_bits // 8)
        capacity = play.expected + EXCESS
        words, beats = np.ascontiguousarray(play.words), np.ascontiguousarray(play.beats)
        taken_at, given_at = np.zeros(len(beats), np.int64), np.zeros(capacity, np.int64)
        given, unstable = np.zeros((capacity, out_bytes), np.uint8), np.zeros(EXCESS, np.int64)
        plan = _Plan(
            **{
                name: array.ctypes.data
                for name, array in {
                    "words": words,
                    "beats": beats,
                    "taken_at": taken_at,
                    "given_at": given_at,
                    "given": given,
                    "unstable": unstable,
                }.items()
            },
            word_count=len(words),
            beat_count=len(beats),
            expected=play.expected,
            given_capacity=capacity,
            unstable_capacity=EXCESS,
            patience=self.patience,
            stall_seed=-1 if stall_seed is None else stall_seed,
            reset=self._reset_cycles,
            breaks_off=int(breaks_off),
        )
        self._library.bulk_play(self._unit, ctypes.byref(plan))
        self._reset_cycles = 0
        self.cycle = plan.cycle
        count = plan.given_count
        played = Played(taken_at[: plan.taken], given_at[:count], given[:count])
        return played, unstable[: plan.unstable_count].tolist(), bool(plan.finished)

    def reset(self) -> None:
        """Let the next `play` begin with a reset of one cycle, which may fall into the middle of a row."""
        self._reset_cycles = 1

    def write_coverage(self, path: Path) -> None:
        """Write the counts of a library with coverage; the model cannot be played afterwards."""
        self._library.bulk_coverage.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._library.bulk_coverage(self._unit, str(path).encode())

    def close(self) -> None:
        """Free the model."""
        if self._unit:
            self._library.bulk_delete(self._unit)
            self._unit = None

    def __enter__(self) -> BulkModel:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
