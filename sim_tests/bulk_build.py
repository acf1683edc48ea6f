"""Builds a unit's Verilog and the bulk tier's driver into a shared library, once for each text and set of flags."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from golden.errors import HwsimError
from sim_tests.build import run_step
from sim_tests.simulate import BeatBits
from sim_tests.toolchain import Toolchain

DRIVER = Path(__file__).parent / "bulk.cpp"
LIBRARY = "libunit.so"
PREFIX = "Vunit"
# Parts of Verilator's library, which are the same for every unit.
_RUNTIME = ("verilated", "verilated_threads")
_COVERAGE_FLAGS = ("--coverage-line", "--coverage-toggle")


def build_library(
    verilog: str,
    module: str,
    bits: BeatBits,
    *,
    loadable: bool,
    build_dir: Path,
    tools: Toolchain,
    coverage: bool = False,
    mutants: bool = False,
) -> Path:
    """Compile a unit's model and its driver, or find them compiled.

    Parameters
    ----------
    verilog : str
        Text of the unit, as `rtl.verilog.export` gives it.
    module : str
        Its module name.
    bits : BeatBits
        Widths of its ports.
    loadable : bool
        Whether it has a write port.
    build_dir : Path
        Finished libraries stay here, in a folder named by module and content.
    coverage : bool
        Count lines and toggles; the model is slower then.
    mutants : bool
        The module has a port ``mutant`` (`sim_tests.mutation`).

    Returns
    -------
    Path
        The folder: the library is called ``libunit.so``, the unit ``<module>.v``.

    Raises
    ------
    HwsimError
        Verilator or the compiler failed; the message names the log. Or a path holds a space.
    """
    build_dir = Path(build_dir).absolute()
    for path in (build_dir, DRIVER, tools.verilator):
        if " " in str(path):
            raise HwsimError(f"{path} holds a space, and the model cannot be built there; choose another folder")
    flags = [
        *("-cc", "-O3", "--prefix", PREFIX, "--top-module", module, "-Mdir", "model"),
        # Registers without a power-up value start at random, so that nothing can rely on one.
        *("--x-assign", "fast", "--x-initial", "unique", "-Wno-PROCASSINIT", "-Wno-fatal", "--no-timing"),
        *(_COVERAGE_FLAGS if coverage else ()),
    ]
    # The model of a unit with mutants is compiled for one short run, another one for many long ones.
    optimise = "-O1" if mutants or coverage else "-O3"
    compiled = [
        *(
            "-std=c++17",
            "-fPIC",
            "-fvisibility=hidden",
            optimise,
            "-DVM_SC=0",
            "-DVM_TIMING=0",
            "-DVM_TRACE=0",
            "-DVM_TRACE_FST=0",
        ),
        *("-DVM_TRACE_VCD=0", "-DVM_TRACE_SAIF=0", "-DVERILATOR=1", f"-DVM_COVERAGE={int(coverage)}", "-w"),
    ]
    widths = {"IN_BYTES": bits.in_bytes, "OUT_BYTES": bits.out_bytes, "WRITE_BYTES": bits.write_bytes}
    defines = [f"-D{name}={value}" for name, value in widths.items()]
    defines += ["-DLOADABLE"] * loadable + ["-DMUTANTS"] * mutants
    identity = "\0".join([verilog, DRIVER.read_text(), *flags, *compiled, *defines, tools.identity])
    folder = build_dir / f"{module}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if (folder / LIBRARY).is_file():
        return folder
    build_dir.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{module}-", dir=build_dir))
    log = work / "build.log"
    try:
        (work / f"{module}.v").write_text(verilog)
        run_step([str(tools.verilator), *flags, f"{module}.v"], work, log, tools)
        include = _include_folder(tools)
        sources = sorted(path.name for path in (work / "model").glob(f"{PREFIX}*.cpp"))
        (work / "all.cpp").write_text("".join(f'#include "{name}"\n' for name in [*sources, str(DRIVER)]))
        paths = ["-Imodel", f"-I{include}", f"-I{include / 'vltstd'}"]
        runtime = _runtime(work, log, [*compiled, *paths[1:]], include, build_dir, tools, coverage)
        command = [tools.compiler, "-shared", *compiled, *defines, *paths, "all.cpp", *map(str, runtime)]
        run_step([*command, "-pthread", "-o", LIBRARY], work, log, tools)
        shutil.rmtree(work / "model")
        (work / "all.cpp").unlink()
        try:
            os.replace(work, folder)
        except OSError:
            if not (folder / LIBRARY).is_file():  # else another process was faster
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _include_folder(tools: Toolchain) -> Path:
    """Verilator's C++ headers and sources."""
    root = tools.verilator_root or tools.verilator.resolve().parent.parent / "share" / "verilator"
    if not (root / "include" / "verilated.cpp").is_file():
        raise HwsimError(
            f"Verilator ({tools.verilator}) has no C++ sources in {root / 'include'}; unset HWSIM_VERILATOR to use "
            "the one of the Python package"
        )
    return root / "include"


def _runtime(
    work: Path,
    log: Path,
    compiled: Sequence[str],
    include: Path,
    build_dir: Path,
    tools: Toolchain,
    coverage: bool,
) -> list[Path]:
    """Objects of Verilator's library; the first build compiles them."""
    names = [*_RUNTIME, *(["verilated_cov"] if coverage else [])]
    key = hashlib.sha256("\0".join([tools.identity, *compiled]).encode()).hexdigest()[:12]
    folder = build_dir / f"verilated-bulk-{key}"
    with (build_dir / "verilated-bulk.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other threads and processes wait instead of compiling the same
        if not folder.is_dir():
            temporary = Path(tempfile.mkdtemp(prefix=".verilated-", dir=build_dir))
            try:
                for name in names:
                    source, target = include / f"{name}.cpp", temporary / f"{name}.o"
                    run_step([tools.compiler, *compiled, "-c", str(source), "-o", str(target)], work, log, tools)
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return [folder / f"{name}.o" for name in names]
