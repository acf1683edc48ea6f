"""Runs one simulator on a plan of layers and brings back what came out, cycle by cycle."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cocotb_tools import config

from sim_tests.build import TOP
from sim_tests.toolchain import Toolchain

CLOCK_PERIOD_PS = 10_000


@dataclass(frozen=True)
class Play:
    """One layer: constants to load, beats to send, number of beats to wait for.

    Attributes
    ----------
    words, beats : uint8 [count, bytes]
        As `sim_tests.beats` packs them.
    expected : int
    """

    words: np.ndarray
    beats: np.ndarray
    expected: int


@dataclass(frozen=True)
class Played:
    """What a unit did with a layer.

    Attributes
    ----------
    taken_at : int64 [beats taken]
        Cycle in which each input beat was taken, counted from reset.
    given_at : int64 [beats given]
    given : uint8 [beats given, bytes]
    """

    taken_at: np.ndarray
    given_at: np.ndarray
    given: np.ndarray

    @staticmethod
    def nothing(out_bits: int) -> Played:
        """A layer that the simulation did not come to."""
        never = np.zeros(0, np.int64)
        return Played(never, never, np.zeros((0, -(-out_bits // 8)), np.uint8))


@dataclass(frozen=True)
class Outcome:
    """Layers as far as they were played, cycles in which an offered result changed, and cycles in all."""

    layers: list[Played]
    unstable: list[int]
    cycles: int


@dataclass(frozen=True)
class BeatBits:
    """Widths of beats and the number of cycles that are simulated between two wake-ups of Python."""

    in_bytes: int
    out_bytes: int
    write_bytes: int

    @property
    def in_bits(self) -> int:
        return 9 * self.in_bytes + 1

    @property
    def out_bits(self) -> int:
        return 9 * self.out_bytes + 1

    @property
    def window(self) -> int:
        """A power of two, so long as the vectors that carry a window are short enough to pass quickly."""
        longest = 16_384 // max(self.in_bits, self.out_bits + 4, 8 * self.write_bytes)
        return 1 << max(4, min(8, longest.bit_length() - 1))

    @property
    def bench_parameters(self) -> dict[str, int]:
        return {
            "IN_BYTES": self.in_bytes,
            "OUT_BYTES": self.out_bytes,
            "WRITE_BYTES": self.write_bytes,
            "WINDOW_BITS": self.window.bit_length() - 1,
        }


def simulate(
    simulator: Path,
    bits: BeatBits,
    plays: Sequence[Play],
    *,
    stall_seed: int | None,
    tools: Toolchain,
    waveform: tuple[int, int] | None = None,
) -> tuple[Outcome, Path | None]:
    """Play layers one after the other.

    Parameters
    ----------
    simulator : Path
        Folder of `sim_tests.build.build_simulator`.
    stall_seed : int or None
        Of random stalls on both sides; None for none.
    waveform : (int, int), optional
        First and last cycle to record; the run ends after them.

    Returns
    -------
    outcome : Outcome
    path : Path or None
        The waveform, a temporary file in `simulator`.

    Raises
    ------
    RuntimeError
        The simulator stopped without an outcome; the message holds the end of its log.
    """
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=simulator))
    plan: dict[str, object] = {
        "window": bits.window,
        "in_bits": bits.in_bits,
        "out_bits": bits.out_bits,
        "stall_seed": -1 if stall_seed is None else stall_seed,
        "last_cycle": -1 if waveform is None else waveform[1],
        "layers": len(plays),
    }
    for number, play in enumerate(plays):
        plan |= {f"beats_{number}": play.beats, f"words_{number}": play.words, f"expected_{number}": play.expected}
    np.savez(folder / "plan.npz", **plan)  # type: ignore[arg-type]
    command = [str(simulator / TOP), "+verilator+rand+reset+2", "+verilator+seed+1"]
    if waveform is not None:
        command.append(f"+waveform_from={waveform[0]}")
    environment = tools.environment() | {
        "COCOTB_TEST_MODULES": "sim_tests.replay",
        "COCOTB_TOPLEVEL": TOP,
        "TOPLEVEL_LANG": "verilog",
        "COCOTB_TRUST_INERTIAL_WRITES": "1",
        "COCOTB_LOG_LEVEL": "WARNING",
        "COCOTB_RANDOM_SEED": "1",
        "COCOTB_REWRITE_ASSERTION_FILES": "",  # else pytest and all its plugins are loaded: a second of every run
        "OPENBLAS_NUM_THREADS": "1",
        "PYGPI_PYTHON_BIN": sys.executable,
        "GPI_USERS": f"{tools.libpython};{config.pygpi_entry_point()}",
        "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path),
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if not (folder / "outcome.npz").is_file():
        raise RuntimeError(f"the simulation in {folder} broke off:\n{done.stdout[-4000:]}")
    with np.load(folder / "outcome.npz") as stored:
        layers = [
            Played(stored[f"taken_at_{number}"], stored[f"given_at_{number}"], stored[f"given_{number}"])
            for number in range(len(plays))
            if f"given_{number}" in stored
        ]
        outcome = Outcome(layers, stored["unstable"].tolist(), int(stored["cycles"]))
    path = None
    if waveform is not None:
        path = simulator / f"{folder.name}.vcd"
        os.replace(folder / "waveform.vcd", path)
        _cut(path, waveform[1] - waveform[0])
    shutil.rmtree(folder)
    return outcome, path


def _cut(path: Path, cycles: int) -> None:
    """Cut a waveform after so many cycles; the simulator only stops at the end of a window."""
    kept: list[str] = []
    end: int | None = None
    with path.open() as file:
        for line in file:
            if line.startswith("#"):
                time = int(line[1:])
                end = time + cycles * CLOCK_PERIOD_PS if end is None else end
                if time > end:
                    break
            kept.append(line)
    path.write_text("".join(kept))
