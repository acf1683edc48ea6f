"""Builds a unit's Verilog and the bench into a simulator, once for each text and set of flags."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cocotb_tools import config

from golden.errors import HwsimError
from sim_tests.toolchain import Toolchain

BENCH = Path(__file__).parent / "bench.sv"
TOP = "bench"
# Parts of Verilator's library, which are the same for every unit.
_LIBRARY = ("verilated", "verilated_vpi", "verilated_dpi", "verilated_threads", "verilated_vcd_c")


def build_simulator(
    verilog: str,
    module: str,
    parameters: Mapping[str, int],
    defines: Sequence[str],
    *,
    build_dir: Path,
    tools: Toolchain,
    waveform: bool = False,
) -> Path:
    """Compile the bench around a unit, or find it compiled.

    Parameters
    ----------
    verilog : str
        Text of the unit, as `rtl.verilog.export` gives it.
    module : str
        Its module name.
    parameters : mapping
        Of ``bench.sv``.
    defines : sequence of str
        Verilog macros to set.
    build_dir : Path
        Finished simulators stay here, in a folder named by module and content.
    waveform : bool
        Whether the simulator can write a waveform; it is slower then.

    Returns
    -------
    Path
        The folder: the program is called ``bench``, the unit ``<module>.v``.

    Raises
    ------
    HwsimError
        Verilator or the compiler failed; the message names the log. Or a path holds a space.
    """
    for path in (build_dir, BENCH, tools.verilator):
        if " " in str(path):
            raise HwsimError(f"{path} holds a space, and make cannot build there; choose another folder")
    flags = [
        *("-cc", "--exe", "--vpi", "--prefix", "Vtop", "--top-module", TOP, "-o", TOP),
        # Registers without a power-up value start at random, so that nothing can rely on one.
        *("--x-initial", "unique", "-Wno-PROCASSINIT"),
        *(f"-G{name}={value}" for name, value in sorted(parameters.items())),
        *(f"-D{name}" for name in (f"UNIT={module}", *defines, *(["WAVEFORM"] if waveform else []))),
        *(["--trace"] if waveform else []),
    ]
    identity = "\0".join([verilog, BENCH.read_text(), *flags, tools.identity, str(config.libs_dir)])
    folder = build_dir / f"{module}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if (folder / TOP).is_file():
        return folder
    build_dir.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{module}-", dir=build_dir))
    log = work / "build.log"
    try:
        (work / f"{module}.v").write_text(verilog)
        link = f"-Wl,-rpath,{config.libs_dir} -L{config.libs_dir} -lcocotbvpi_verilator"
        main = config.share_dir / "lib" / "verilator" / "verilator.cpp"
        verilate = [str(tools.verilator), *flags, "-Mdir", ".", "-LDFLAGS", link, str(main), str(BENCH), f"{module}.v"]
        make = [tools.make, "-f", "Vtop.mk", "-j", str(min(os.cpu_count() or 1, 4)), *_make_variables(tools)]
        _run(verilate, work, log, tools)
        _borrow_library(work, log, make, build_dir, tools, waveform)
        _run([*make, TOP], work, log, tools)
        for path in work.iterdir():
            if path.name not in (TOP, f"{module}.v", log.name):
                path.unlink()
        try:
            os.replace(work, folder)
        except OSError:
            if not (folder / TOP).is_file():  # else another process was faster
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _make_variables(tools: Toolchain) -> list[str]:
    """Programs for Verilator's makefile, which otherwise names those of the machine that it was packaged on."""
    return [f"CXX={tools.compiler}", f"LINK={tools.compiler}", "AR=ar", f"PYTHON3={sys.executable}", "OPT_FAST=-O1"]


def _borrow_library(work: Path, log: Path, make: list[str], build_dir: Path, tools: Toolchain, waveform: bool) -> None:
    """Copy the objects of Verilator's library from an earlier build; the first one compiles them."""
    key = hashlib.sha256(tools.identity.encode()).hexdigest()[:12]
    library = build_dir / f"verilated{'-vcd' if waveform else ''}-{key}"
    with (build_dir / "verilated.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other threads and processes wait instead of compiling the same
        if not library.is_dir():
            names = [f"{name}.o" for name in _LIBRARY if waveform or name != "verilated_vcd_c"]
            _run([*make, *names], work, log, tools)
            temporary = Path(tempfile.mkdtemp(prefix=".verilated-", dir=build_dir))
            for name in names:
                shutil.copy(work / name, temporary)
            os.replace(temporary, library)
            return
    for path in library.iterdir():
        shutil.copy(path, work)  # now newer than the makefile, so that make keeps it


def _run(command: list[str], folder: Path, log: Path, tools: Toolchain) -> None:
    with log.open("a") as file:
        file.write(" ".join(command) + "\n")
        file.flush()
        done = subprocess.run(
            command, cwd=folder, env=tools.environment(), stdout=file, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        kept = folder.parent / "failed-build.log"
        os.replace(log, kept)
        said = next(
            (line for line in kept.read_text().splitlines() if "rror" in line or "***" in line), "it says nothing"
        )
        raise HwsimError(f"building the simulation failed in {Path(command[0]).name}: {said}; see {kept}")
