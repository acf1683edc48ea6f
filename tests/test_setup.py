"""The set-up says what a machine lacks, before it makes anything."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "tools" / "setup.sh"
BASICS = ("sh", "dirname", "head", "grep", "rm", "env")
# What the fake tools do instead; "real" runs the machine's own.
STUB = {"broken": "exit 1", "old": "echo Python 3.10.12; exit 1", "shim": "echo no such version >&2; exit 127"}


@pytest.fixture
def machine(tmp_path):
    """A copy of the project's set-up, and how to run it with only the named tools on the path."""
    (tmp_path / "project" / "tools").mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "project" / "tools")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in BASICS:
        (tools / name).symlink_to(shutil.which(name))

    def run(*arguments, environment=(), **kinds):
        for name, kind in kinds.items():
            name = {"cxx": "c++", "python3_12": "python3.12"}.get(name, name)
            own = sys.executable if name.startswith("python") else shutil.which(name)
            script = f'exec "{own}" "$@"' if kind == "real" else STUB.get(kind, kind)
            (tools / name).write_text(f"#!{shutil.which('sh')}\n{script}\n")
            (tools / name).chmod(0o755)
        return subprocess.run(
            [shutil.which("sh"), tmp_path / "project" / "tools" / "setup.sh", *arguments],
            env={"PATH": str(tools), **dict(environment)},
            capture_output=True,
            text=True,
            check=False,
        )

    run.project = tmp_path / "project"
    return run


def test_a_machine_with_everything_passes(machine):
    result = machine("--check", python3="real", cxx="real", perl="real")
    assert result.returncode == 0, result.stderr
    assert "C++ compiler c++, perl" in result.stdout
    assert not (machine.project / ".venv").exists()


@pytest.mark.parametrize(
    ("kinds", "message", "remedy"),
    [
        ({"python3": "real", "perl": "real"}, "missing: a C++ compiler; none of c++, g++, clang++", "apt install g++"),
        (
            {"python3": "real", "perl": "real", "cxx": "broken"},
            "missing: a C++ compiler; none of c++, g++, clang++ compiles",
            "make CXX=",
        ),
        ({"python3": "real", "cxx": "real"}, "missing: Perl", "apt install perl"),
        ({"python3": "real", "cxx": "real", "perl": "broken"}, "missing: Perl with its standard modules", "perl"),
        ({"cxx": "real", "perl": "real"}, "missing: Python 3.11 or newer", "make PYTHON="),
        (
            {"python3": "old", "python3_12": "shim", "cxx": "real", "perl": "real"},
            "missing: Python 3.11 or newer; Python 3.10.12",
            "make PYTHON=",
        ),
    ],
)
def test_what_is_missing_is_named_with_a_remedy(machine, kinds, message, remedy):
    result = machine(**kinds)
    assert result.returncode == 1
    assert message in result.stderr
    assert remedy in result.stderr
    assert result.stderr.count("missing:") == 1
    assert not (machine.project / ".venv").exists()


def test_everything_that_is_missing_is_named_at_once(machine):
    result = machine("--check")
    assert result.returncode == 1
    assert result.stderr.count("setup: missing: ") == 3


def test_another_python_is_found_or_named(machine):
    tools = {"cxx": "real", "perl": "real"}
    assert "(python3.12)" in machine("--check", python3="old", python3_12="real", **tools).stdout
    assert f"({sys.executable})" in machine("--check", environment=[("PYTHON", sys.executable)]).stdout
    result = machine("--check", environment=[("PYTHON", "python3")])
    assert "PYTHON=python3 does not run or is older" in result.stderr


def test_a_python_without_venv_is_named_and_leaves_nothing(machine):
    refusing = f'[ "$1" != -m ] || {{ mkdir -p .venv/bin; exit 1; }}; exec "{sys.executable}" "$@"'
    result = machine(python3=refusing, cxx="real", perl="real", mkdir="real")
    assert result.returncode == 1
    assert "missing: Python's venv module; python3 cannot make an environment" in result.stderr
    assert "apt install python3-venv" in result.stderr
    assert not (machine.project / ".venv").exists()


def test_a_folder_that_is_no_environment_is_left_alone(machine):
    kept = machine.project / ".venv" / "notes.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    result = machine(python3="real", cxx="real", perl="real")
    assert result.returncode == 1
    assert ".venv exists and is no Python environment; move it away" in result.stderr
    assert kept.read_text() == "mine"
