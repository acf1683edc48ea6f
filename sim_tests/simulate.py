"""Runs one simulator on a plan of layers and brings back what came out, cycle by cycle."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cocotb_tools import config

from sim_tests.build import TOP
from sim_tests.toolchain import Toolchain


@dataclass(frozen=True)
class Play:
    """One layer: constants to load, beats to send, number of beats to wait for.

    Attributes
    ----------
    words, beats : uint8 [count, bytes]
        As `sim_tests.beats` packs them.
    expected : int
    reset : bool
        Reset the unit when the beats are sent, whatever it still has inside, instead of waiting for results.
    """

    words: np.ndarray
    beats: np.ndarray
    expected: int
    reset: bool = False


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
    data: Sequence[str] = (),
) -> Outcome:
    """Play layers one after the other.

    Parameters
    ----------
    simulator : Path
        Folder of `sim_tests.build.build_simulator`.
    stall_seed : int or None
        Of random stalls on both sides; None for none.
    data : sequence of str
        Files of `simulator` that the unit reads.

    Raises
    ------
    RuntimeError
        The simulator stopped without an outcome; the message holds the end of its log.
    """
    folder, done = _run(simulator, bits, plays, stall_seed, tools, data)
    if not (folder / "outcome.npz").is_file():
        raise RuntimeError(f"the simulation in {folder} broke off:\n{done.stdout[-4000:]}")
    with np.load(folder / "outcome.npz") as stored:
        layers = [
            Played(stored[f"taken_at_{number}"], stored[f"given_at_{number}"], stored[f"given_{number}"])
            for number in range(len(plays))
            if f"given_{number}" in stored
        ]
        outcome = Outcome(layers, stored["unstable"].tolist(), int(stored["cycles"]))
    shutil.rmtree(folder)
    return outcome


def record(
    simulator: Path,
    bits: BeatBits,
    plays: Sequence[Play],
    expected: Sequence[np.ndarray],
    cycles: tuple[int, int],
    *,
    stall_seed: int | None,
    tools: Toolchain,
    data: Sequence[str] = (),
) -> tuple[Path, int]:
    """Play layers once more and write a waveform of some cycles.

    Parameters
    ----------
    simulator : Path
        Built with ``waveform=True``.
    expected : sequence of uint8 arrays [beats, bytes]
        What each layer must give, for the waveform.
    cycles : (int, int)
        First and last one to record; the run ends after them.

    Returns
    -------
    path : Path
        The waveform, a temporary file in `simulator`.
    start : int
        Its begin, the time of the first of the cycles in ps.

    Raises
    ------
    RuntimeError
        There is no waveform; the message holds the end of the simulator's log.
    """
    digits = -(-bits.out_bits // 4)
    words = [f"{int.from_bytes(beat.tobytes(), 'little'):0{digits}x}\n" for layer in expected for beat in layer]
    around = [f"+waveform_from={cycles[0]}", f"+waveform_to={cycles[1]}"]
    texts = {"expected.hex": "".join(words)}
    folder, done = _run(simulator, bits, plays, stall_seed, tools, data, arguments=around, texts=texts)
    found = next(iter(folder.glob("waveform.*")), None)
    start = folder / "waveform_start.txt"
    if found is None or not start.is_file():
        raise RuntimeError(f"the simulation in {folder} left no waveform:\n{done.stdout[-4000:]}")
    path = simulator / f"{folder.name}{found.suffix}"
    os.replace(found, path)
    began = int(start.read_text())
    shutil.rmtree(folder)
    return path, began


def _run(
    simulator: Path,
    bits: BeatBits,
    plays: Sequence[Play],
    stall_seed: int | None,
    tools: Toolchain,
    data: Sequence[str],
    arguments: Sequence[str] = (),
    texts: Mapping[str, str] | None = None,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Run a simulator in a folder of its own, which stays."""
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=simulator))
    for name in data:
        shutil.copy(simulator / name, folder)
    for name, text in (texts or {}).items():
        (folder / name).write_text(text)
    plan: dict[str, object] = {
        "window": bits.window,
        "in_bits": bits.in_bits,
        "out_bits": bits.out_bits,
        "stall_seed": -1 if stall_seed is None else stall_seed,
        "layers": len(plays),
    }
    for number, play in enumerate(plays):
        plan |= {f"beats_{number}": play.beats, f"words_{number}": play.words}
        plan |= {f"expected_{number}": play.expected, f"reset_{number}": play.reset}
    np.savez(folder / "plan.npz", **plan)  # type: ignore[arg-type]
    command = [str(simulator / TOP), "+verilator+rand+reset+2", "+verilator+seed+1", *arguments]
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
    return folder, done
