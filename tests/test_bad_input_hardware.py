# amaranth: UnusedElaboratable=no
"""Hardware that cannot be had: one clear sentence each, naming the field or tool and the remedy, and no file left."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from golden.errors import HwsimError
from golden.vectors import UnitVectors, write_vectors
from hwsim.cli import main
from hwsim.program import Program, save_program
from rtl import catalog
from sim_tests.unit_examples import example


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """Run the command line; it must fail with one line and leave the folder as it was."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "-o", str(folder / "out")])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("hwsim: ")
    assert said.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
    return said


@pytest.mark.parametrize("kind", sorted(catalog.UNITS))
def test_a_spec_out_of_range_names_the_field_and_the_range(kind: str) -> None:
    spec = example(kind).spec
    ranges = {field.name: field.metadata["range"] for field in fields(spec) if "range" in field.metadata}
    assert ranges
    for name, (low, high) in ranges.items():
        for value in (low - 1, high + 1):
            with pytest.raises(HwsimError, match=rf"{kind} spec: {name} must be .*{low}.*{high}.*{value}"):
                replace(spec, **{name: value})


def test_sums_that_are_too_wide() -> None:
    with pytest.raises(HwsimError, match="needs 62 bits, above 61; lower fraction_bits"):
        replace(example("log_softmax").spec, polynomial_bits=32, fraction_bits=16, row_length=1 << 14)


@pytest.mark.parametrize("kind", ["adalog_matmul", "log2_matmul"])
def test_values_with_a_grid_for_each_head(kind: str) -> None:
    layer = example(kind)
    spec = replace(layer.spec, heads=3, requantize=replace(layer.spec.requantize, channels=3))
    for build in (
        lambda: catalog.covering([(spec, layer.constants)], lanes=1),
        lambda: catalog.UNITS[kind].unit(spec, lanes=1),
    ):
        with pytest.raises(HwsimError, match=f"a {kind} unit takes heads 1, not 3"):
            build()


def vectors(folder: Path) -> Path:
    layer = example("lookup")
    rows = layer.rows(4, 5, 1, np.random.default_rng(0))
    path = folder / "lookup.safetensors"
    write_vectors(
        path,
        UnitVectors(
            layer.spec, layer.constants, rows.inputs, rows.output, None, "random", "none", "gelu", (0, 1, 2, 3)
        ),
    )
    return path


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CXX", "no-such-compiler", "CXX names no-such-compiler, which is not a program; correct or unset it"),
        ("HWSIM_VERILATOR", "old", r"Verilator 5\.006 .* is too old: cocotb 2 needs 5\.036; unset HWSIM_VERILATOR"),
        ("HWSIM_VERILATOR", "none", "HWSIM_VERILATOR names .*none, which is not a program; correct or unset it"),
        ("PATH", "", r"perl is missing, .*install it \(Debian: apt install perl\)"),
    ],
)
@pytest.mark.parametrize("theirs", [False, True])
def test_cosimulation_without_its_tools(
    variable: str,
    value: str,
    message: str,
    theirs: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["cosim", "--vectors", str(vectors(tmp_path))]
    if theirs:
        (tmp_path / "their.v").write_text("module their; endmodule\n")
        (tmp_path / "ports.toml").write_text(
            'unit = "lookup"\nclock = {port = "c"}\n'
            'input = {data = "d", valid = "v"}\noutput = {data = "q", valid = "w"}\n'
        )
        arguments += ["--verilog", str(tmp_path / "their.v"), "--top", "their", "--map", str(tmp_path / "ports.toml")]
    if variable == "HWSIM_VERILATOR":
        old = tmp_path / "old"
        old.write_text("#!/bin/sh\necho 'Verilator 5.006 2023-01-22'\n")
        old.chmod(0o755)
        value = str(tmp_path / value)
    monkeypatch.setenv(variable, value)
    assert re.search(message, refused(arguments, capsys, tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verilog", "a.v"], "needs all of --verilog FILE, --top MODULE and --map ports.toml"),
        (["--top", "a"], "needs all of --verilog FILE, --top MODULE and --map ports.toml"),
        (["--verilog", "a.v", "--top", "a", "--map", "no.toml"], "no.toml: cannot be read (No such file or directory)"),
    ],
)
def test_half_of_somebody_elses_unit(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(["cosim", "--vectors", str(vectors(tmp_path)), *arguments], capsys, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lanes", "4"], "--lanes 4: .*ports.toml says that the unit has 1; change lanes there"),
        (["--unit", "layernorm"], "--unit layernorm: .*ports.toml says that the unit is a log_softmax"),
    ],
)
def test_options_that_the_map_contradicts(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(__file__).parent.parent / "examples" / "bring_your_own"
    unit = ["--verilog", str(folder / "their_softmax.sv"), "--top", "a", "--map", str(folder / "ports.toml")]
    said = refused(["cosim", "--vectors", str(vectors(tmp_path)), *unit, *arguments], capsys, tmp_path)
    assert re.search(message, said)


def test_verilog_that_cannot_be_exported(
    small_program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.program"
    save_program(small_program, path)

    def message(*arguments: str) -> str:
        return refused(["rtl", *arguments, "--program", str(path)], capsys, tmp_path)

    assert "there is no hardware unit 'softmax'; there are adalog_decode, " in message("softmax")
    assert "--baked takes the constants of one layer, 5 are chosen; name one with --layer" in message(
        "layernorm", "--baked"
    )
    assert "module name '2norm' is not a Verilog identifier" in message("layernorm", "--name", "2norm")
    assert "the program has no layer 'blocks.9'" in message("layernorm", "--layer", "blocks.9")


def test_a_program_without_images_has_no_bench(
    small_program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.program"
    save_program(small_program, path)
    main(["rtl", "lookup", "--layer", "blocks.0", "--program", str(path), "-o", str(tmp_path / "out")])
    assert "no bench: small needs test images, give them with --data FOLDER" in capsys.readouterr().out
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"lookup.v", "lookup.md", "lookup.core", "lookup.tcl"} <= names
    assert not [name for name in names if "_tb" in name]
