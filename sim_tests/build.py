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
from sim_tests.waveform import waveform_format

BENCH = Path(__file__).parent / "bench.sv"
TOP = "bench"
# Parts of Verilator's library, which are the same for every unit.
_LIBRARY = ("verilated", "verilated_vpi", "verilated_dpi", "verilated_threads")


def build_simulator(
    verilog: str,
    module: str,
    parameters: Mapping[str, int],
    defines: Sequence[str],
    *,
    build_dir: Path,
    tools: Toolchain,
    waveform: bool = False,
    foreign: Mapping[str, str] | None = None,
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
    foreign : mapping of str to str, optional
        Text by file name of what `verilog` needs and others wrote: Verilog (``.v``, ``.sv``) is compiled
        before it, warnings allowed, everything else lies where it can be included or read.

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
        *(f"-D{name}" for name in (f"UNIT={module}", *defines)),
    ]
    style = waveform_format(tools.compiler) if waveform else None
    if style is not None:
        flags += [f"--trace-{style}", f'-DWAVEFORM="waveform.{style}"']
    texts = foreign or {}
    if texts:
        flags += ["-Wno-fatal", "-I."]
    sources = [name for name in texts if Path(name).suffix in (".v", ".sv")]
    identity = "\0".join([verilog, BENCH.read_text(), *flags, tools.identity, str(config.libs_dir)])
    identity += "".join(f"\0{name}\0{text}" for name, text in texts.items())
    folder = build_dir / f"{module}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if (folder / TOP).is_file():
        return folder
    build_dir.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{module}-", dir=build_dir))
    log = work / "build.log"
    try:
        (work / f"{module}.v").write_text(verilog)
        for name, text in texts.items():
            (work / name).write_text(text)
        link = f"-Wl,-rpath,{config.libs_dir} -L{config.libs_dir} -lcocotbvpi_verilator"
        main = config.share_dir / "lib" / "verilator" / "verilator.cpp"
        files = [str(main), str(BENCH), *sources, f"{module}.v"]
        verilate = [str(tools.verilator), *flags, "-Mdir", ".", "-LDFLAGS", link, *files]
        make = [tools.make, "-f", "Vtop.mk", "-j", str(min(os.cpu_count() or 1, 4)), *make_variables(tools)]
        run_step(verilate, work, log, tools)
        names = [*_LIBRARY, *([f"verilated_{style}_c"] if style else [])]
        borrow_library(work, log, make, build_dir / f"verilated{f'-{style}' if style else ''}", names, tools)
        run_step([*make, TOP], work, log, tools)
        for path in work.iterdir():
            if path.name not in (TOP, f"{module}.v", log.name, *texts):
                path.unlink()
        try:
            os.replace(work, folder)
        except OSError:
            if not (folder / TOP).is_file():  # else another process was faster
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def make_variables(tools: Toolchain) -> list[str]:
    """Programs for Verilator's makefile, which otherwise names those of the machine that it was packaged on."""
    return [f"CXX={tools.compiler}", f"LINK={tools.compiler}", "AR=ar", f"PYTHON3={sys.executable}", "OPT_FAST=-O1"]


def borrow_library(work: Path, log: Path, make: list[str], place: Path, names: Sequence[str], tools: Toolchain) -> None:
    """Copy the objects `names` of Verilator's library from ``<place>-<tools>``; the first build compiles them."""
    key = hashlib.sha256(tools.identity.encode()).hexdigest()[:12]
    library = place.with_name(f"{place.name}-{key}")
    with (place.parent / "verilated.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other threads and processes wait instead of compiling the same
        if not library.is_dir():
            run_step([*make, *(f"{name}.o" for name in names)], work, log, tools)
            temporary = Path(tempfile.mkdtemp(prefix=".verilated-", dir=place.parent))
            for name in names:
                shutil.copy(work / f"{name}.o", temporary)
            os.replace(temporary, library)
            return
    for path in library.iterdir():
        shutil.copy(path, work)  # now newer than the makefile, so that make keeps it


def run_step(command: list[str], folder: Path, log: Path, tools: Toolchain) -> None:
    """Run one step of a build in its folder.

    Raises
    ------
    HwsimError
        The step failed; its log is kept beside the folder and named.
    """
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
