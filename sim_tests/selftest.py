"""The self-test of a board: its stimulus from golden vectors, and its run in Verilator before a bitstream is made."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from golden.errors import HwsimError
from golden.vectors import Accumulating, UnitVectors
from rtl import axi, catalog
from rtl.boards.selftest import TOP
from rtl.boards.unit_check import Stimulus
from sim_tests.beats import Beats, beats_of, words_of
from sim_tests.build import borrow_library, make_variables, run_step
from sim_tests.toolchain import Toolchain, find_toolchain

MAIN = Path(__file__).parent / "selftest.cpp"
PLL_MODEL = Path(__file__).parent / "ehxplll.v"
"""The PLL of the ECP5 as far as the self-test uses it: its output is its input, and it locks after a while."""

LONGEST_RUN = 1 << 26
"""Clock cycles after which a self-test without a verdict is given up."""


@dataclass(frozen=True)
class Selftest:
    """What a self-test said.

    Attributes
    ----------
    text : str
        What came out of the serial line, up to the verdict.
    cycles : int
        Clock cycles until then.
    passed : bool
    """

    text: str
    cycles: int
    passed: bool


def stimulus_of(vectors: UnitVectors, *, lanes: int, most_beats: int) -> Stimulus:
    """The first rows of a layer's activations, and the loadable unit that serves this layer.

    Parameters
    ----------
    most_beats : int
        Whole rows are taken up to so many beats in and out, at least one row.

    Raises
    ------
    HwsimError
        No hardware of this kind.
    """
    unit = catalog.covering([(vectors.spec, vectors.constants)], lanes=lanes)
    rows = catalog.entry(vectors.spec.kind).rows(unit, vectors)
    longest = max(-(-rows.inputs[0].shape[1] // len(unit.i.payload.keep)), -(-rows.output.shape[1] // lanes))
    count = max(1, most_beats // longest)
    inputs = beats_of(
        axi.element_of(unit.i.payload), len(unit.i.payload.keep), [member[:count] for member in rows.inputs]
    )
    outputs = beats_of(axi.element_of(unit.o.payload), len(unit.o.payload.keep), [rows.output[:count]])
    port = unit.w.payload
    writes = words_of(unit.writes(vectors.spec, vectors.constants), len(port.address), len(port.data))
    return Stimulus(
        unit=unit,
        layer=vectors.layer,
        writes=[int.from_bytes(word.tobytes(), "little") for word in writes],
        beats=_words(inputs),
        expected=_words(outputs),
    )


def _words(beats: Beats) -> list[int]:
    return [int.from_bytes(beat.tobytes(), "little") for beat in beats.packed()]


def requantizer_of(vectors: UnitVectors) -> UnitVectors:
    """Vectors of the requantizer behind a product: its sums, and the product's output.

    Raises
    ------
    HwsimError
        The unit is no product.
    """
    if not isinstance(vectors.spec, Accumulating) or vectors.accumulator is None:
        raise HwsimError(f"{vectors.layer}: {vectors.spec.kind} has no sums to requantize")
    spec = vectors.spec.requantize  # type: ignore[attr-defined]
    return replace(
        vectors,
        spec=spec,
        constants={name: vectors.constants[name] for name in spec.constants},
        inputs=(vectors.accumulator,),
        accumulator=None,
    )


def flipped(stimulus: Stimulus, beat: int, bit: int) -> Stimulus:
    """The same with one wrong bit in what is expected."""
    expected = list(stimulus.expected)
    expected[beat] ^= 1 << bit
    return replace(stimulus, expected=expected)


def run_selftest(verilog: str, *, bit_cycles: int, build_dir: Path, jobs: int = 1) -> Selftest:
    """Build the whole top level with Verilator and let it run up to its verdict.

    Parameters
    ----------
    verilog : str
        Of `rtl.boards.selftest.build_verilog`.
    bit_cycles : int
        Clock cycles a bit of the serial line.
    build_dir : Path
        Keeps the program and its log.
    jobs : int
        Compilers at the same time.

    Raises
    ------
    HwsimError
        Verilator or the compiler failed, or no verdict came; the message names the log.
    """
    program = _build(verilog, Path(build_dir).absolute(), find_toolchain(), jobs)
    done = subprocess.run(
        [str(program), str(bit_cycles), str(LONGEST_RUN)], capture_output=True, text=True, check=False
    )
    text, _, ending = done.stdout.replace("\r\n", "\n").rpartition("\n# ")
    cycles = ending.split()
    if done.returncode or not cycles:
        raise HwsimError(
            f"the simulated self-test gave no verdict in {LONGEST_RUN:,} clock cycles, only {text[-200:]!r}: "
            "its sequencer or serial line is broken"
        )
    return Selftest(text + "\n", int(cycles[0]), text.splitlines()[-1] == "PASS")


def _build(verilog: str, build_dir: Path, tools: Toolchain, jobs: int) -> Path:
    """The simulator of a whole top level, or an earlier one of the same text."""
    if " " in str(build_dir):
        raise HwsimError(f"{build_dir} holds a space, and make cannot build there; choose another folder")
    flags = [
        *("-cc", "--exe", "--prefix", "Vtop", "--top-module", TOP, "-o", TOP, "-O3", "--no-timing"),
        *("--x-initial", "unique", "--x-assign", "fast", "-Wno-fatal"),
    ]
    sources = "\0".join([verilog, MAIN.read_text(), PLL_MODEL.read_text()])
    identity = "\0".join([sources, *flags, tools.identity])
    folder = build_dir / f"{TOP}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if (folder / TOP).is_file():
        return folder / TOP
    build_dir.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{TOP}-", dir=build_dir))
    log = work / "build.log"
    try:
        (work / f"{TOP}.v").write_text(verilog)
        run_step([str(tools.verilator), *flags, "-Mdir", ".", str(MAIN), str(PLL_MODEL), f"{TOP}.v"], work, log, tools)
        # Large models come in several files with a common precompiled header, whose option the package left empty.
        variables = [*make_variables(tools), "CFG_CXXFLAGS_PCH_I=-include"]
        make = [tools.make, "-f", "Vtop.mk", "-j", str(jobs), *variables]
        borrow_library(work, log, make, build_dir / "verilated-plain", ("verilated", "verilated_threads"), tools)
        run_step([*make, TOP], work, log, tools)
        for path in work.iterdir():
            if path.name not in (TOP, f"{TOP}.v", log.name):
                path.unlink()
        try:
            os.replace(work, folder)
        except OSError:
            if not (folder / TOP).is_file():  # else another process was faster
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder / TOP
