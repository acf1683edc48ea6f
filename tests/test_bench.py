"""The benchmark's own arithmetic, files and command; the figures are those of `docs/speed.md`."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from golden.errors import HwsimError
from hwsim.bench import first_call, gpu, growth, networks, report
from hwsim.bench.measure import Table, Times, alternate, growth_exponent, median_and_spread, peak_memory, ratios
from hwsim.cli import cli, main
from hwsim.cli.bench import PARTS, _possible
from hwsim.execute.cuda import availability
from hwsim.networks.graph import FloatGraph
from hwsim.program import Program, load_program

MACHINE = {"date": "d", "processor": "p", "cores": 2, "instructions": "i", "python": "3", "versions": {}, "load": 0.5}


def table(value: float, title: str = "t", figure: str = "rate of a", **machine: Any) -> Table:
    return Table(title, ("what", "rate"), (("a", value),), "note", {figure: value}, {**MACHINE, **machine}, 0.1)


def test_candidates_run_in_turns() -> None:
    calls: list[str] = []
    times = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "baabbaab"
    assert [len(own.clock) for own in times.values()] == [3, 3]
    assert all(second >= 0 for own in times.values() for second in own.clock + own.processor)


def test_pauses_are_no_part_of_the_times() -> None:
    start = time.perf_counter()
    times = alternate({"a": lambda: None}, 2, pause=0.2)
    assert time.perf_counter() - start > 0.6
    assert max(times["a"].clock) < 0.2


@pytest.mark.parametrize(("command", "policy"), [("bench", None), ("show", "PASSIVE")])
def test_pytorch_waits_as_its_users_have_it_in_the_benchmark_alone(
    command: str, policy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set and removed, so that monkeypatch takes away what the command sets.
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    main([command, "--help"])
    assert os.environ.get("OMP_WAIT_POLICY") == policy


def test_the_first_call_waits_as_our_commands_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    first_call._seconds("import os; assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'")
    with pytest.raises(HwsimError, match=r"^a measured command failed: AssertionError$"):
        first_call._seconds("import os; assert os.environ['OMP_WAIT_POLICY'] != 'PASSIVE'")


def test_medians_ratios_and_exponents() -> None:
    assert median_and_spread([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, 0.5)
    assert ratios([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]) == (2.0, 0.0)
    assert growth_exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)


def test_peak_memory_sees_an_array() -> None:
    before = peak_memory()
    np.ones(int(before + 100) << 17).sum()
    assert before + 90 < peak_memory() < 2 * before + 400


def test_results_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "speed.json"
    assert report.load(path) == {}
    assert report.tables_of(path) == []
    report.save(path, [table(100.0), table(7.0, "other", date="before")])
    report.save(path, [table(150.0)])
    assert report.tables_of(path) == [table(150.0), table(7.0, "other", date="before")]


@pytest.mark.parametrize(
    ("now", "lines"),
    [
        (table(152.0), ["nothing changed by more than 10 %, and no exponent by more than 0.1"]),
        (table(75.0, date="another"), ["changed: rate of a: 150 before, 75 now (-50 %)"]),
        (table(75.0, "a new table"), []),
        (table(75.0, figure="a new figure"), []),
        (
            table(75.0, cores=4),
            ["not compared: t, which was measured on another machine before (p, 2, i)"],
        ),
    ],
)
def test_results_are_compared(now: Table, lines: list[str]) -> None:
    assert report.changes([now], [table(150.0)]) == lines


def test_exponents_are_compared_by_their_difference() -> None:
    figure = "memory against depth, exponent"
    last = [table(0.05, figure=figure)]
    assert report.changes([table(0.1, figure=figure)], last)[0].startswith("nothing changed")
    moved = report.changes([table(0.2, figure=figure)], last)
    assert moved == [f"changed: {figure}: 0.05 before, 0.2 now (+0.15)"]


def test_a_file_that_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    for text in ("no json", "[]", "{}", '{"tables": [{}]}', '{"tables": [1]}'):
        path.write_text(text)
        with pytest.raises(HwsimError, match="not the result of a benchmark"):
            report.load(path)


def test_results_of_an_earlier_version_are_refused(tmp_path: Path) -> None:
    """These had machine and noise once for all tables."""
    path = tmp_path / "speed.json"
    entry = dataclasses.asdict(table(1.0))
    old = {name: value for name, value in entry.items() if name not in ("machine", "noise")}
    path.write_text(json.dumps({"machine": MACHINE, "noise": 0.1, "tables": [old]}))
    with pytest.raises(HwsimError, match="results of an earlier version, which did not keep where each table"):
        report.load(path)


def test_the_tables_go_between_the_marks_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(HwsimError, match="no line"):
        report.replace_section(page, "x")
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    noisy = dataclasses.replace(table(3.0), noise=0.5)
    text = report.markdown([noisy], noisy)
    assert "| a | 3.0 |" in text
    assert "noisy" in text
    assert "noisy" not in report.markdown([table(3.0)], table(3.0))
    report.replace_section(page, text)
    assert page.read_text() == f"before\n{report.BEGIN}\n{text}\n{report.END}\nafter\n"


def test_tables_of_another_time_or_place_say_so() -> None:
    tables = [table(1.0, "A", processor="old", load=7.5), dataclasses.replace(table(1.0, "B"), noise=0.5), table(2.0)]
    text = report.markdown(tables, tables[2])
    head, kept, noisy, own = re.split(r"^### .*$", text, flags=re.MULTILINE)
    assert head.startswith("Measured on d: p, 2 cores") and "Load before: 0.5;" in head and "10 % apart." in head
    assert "Measured on d: old, 2 cores" in kept and "Load before: 7.5;" in kept
    assert "Measured on d: p, 2 cores" in noisy and "50 % apart (a noisy machine)." in noisy
    assert "Measured" not in own


def test_the_command_measures_warns_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwsim.bench.measure.noise", lambda: 0.9)
    monkeypatch.setattr("hwsim.bench.units.units", lambda rounds: table(float(rounds), "Units"))
    output = tmp_path / "speed.json"
    result = CliRunner().invoke(cli, ["bench", "--part", "units", "--rounds", "2", "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert "too noisy" in result.output
    assert json.loads(output.read_text())["tables"][0]["figures"] == {"rate of a": 2.0}
    assert "### Units" in output.with_suffix(".md").read_text()
    again = CliRunner().invoke(cli, ["bench", "--part", "units", "--rounds", "4", "--output", str(output)])
    assert "changed: rate of a: 2 before, 4 now (+100 %)" in again.output


@pytest.mark.parametrize(("noise", "policy"), [(0.01, None), (0.9, "PASSIVE")])
def test_threads_wait_passively_on_a_busy_machine(
    noise: float, policy: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There threads that spin would make PyTorch take many times as long, and flatter the simulator."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr("hwsim.bench.measure.noise", lambda: noise)
    found: list[str | None] = []

    def measure(rounds: int) -> Table:
        found.append(os.environ.get("OMP_WAIT_POLICY"))
        return table(1.0)

    monkeypatch.setattr("hwsim.bench.units.units", measure)
    result = CliRunner().invoke(cli, ["bench", "--part", "units", "--output", str(tmp_path / "speed.json")])
    assert result.exit_code == 0, result.output
    assert found == [policy]


def test_the_worst_noise_of_a_run_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first part and after each: calm, noisy, calm."""
    noises = iter([0.01, 0.3, 0.02])
    monkeypatch.setattr("hwsim.bench.measure.noise", lambda: next(noises))
    for part in ("units", "growth"):
        monkeypatch.setattr(f"hwsim.bench.{part}.{part}", lambda rounds, part=part: table(1.0, part))
    output = tmp_path / "speed.json"
    result = CliRunner().invoke(cli, ["bench", "--part", "units", "--part", "growth", "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert result.stderr.count("too noisy") == 1 and "30 % apart;" in result.stderr
    assert [(entry.title, entry.noise) for entry in report.tables_of(output)] == [("units", 0.3), ("growth", 0.3)]
    assert report.tables_of(output)[0].machine["date"] != MACHINE["date"]


def test_without_a_gpu_its_part_is_refused_or_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_program: Program
) -> None:
    monkeypatch.setattr(availability, "gpu_count", lambda: 0)
    reason = availability.why_not()
    with pytest.raises(HwsimError, match=f"^bench --part gpu: {reason}$"):
        gpu.gpu([small_program], 2)
    monkeypatch.setattr("hwsim.cli.bench._measurements", lambda *_: {part: lambda: table(1.0) for part in PARTS})
    result = CliRunner().invoke(cli, ["bench", "--output", str(tmp_path / "speed.json")])
    assert result.exit_code == 0, result.output
    assert f"hwsim: the part gpu is left out: {reason}" in result.stderr
    assert _possible() == tuple(part for part in PARTS if part != "gpu")


def test_the_table_of_a_gpu(monkeypatch: pytest.MonkeyPatch, small_program: Program) -> None:
    """Of a machine that takes 10 ms for its batches, and 30 ms for those of the float network."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(gpu, "why_not", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Type")
    seconds = {gpu.INTEGER: 0.01, gpu.REPLAYED: 0.01, gpu.FLOAT: 0.03}
    images = {gpu.INTEGER: 8, gpu.REPLAYED: 16, gpu.FLOAT: 8}
    monkeypatch.setattr(gpu, "_candidates", lambda program, stack: (seconds, images))
    monkeypatch.setattr(
        gpu, "alternate", lambda names, rounds: {name: Times([second] * rounds) for name, second in names.items()}
    )
    result = gpu.gpu([small_program, small_program], 3)
    label = f"{small_program.network}, {small_program.recipe}"
    assert result.title == "Whole networks on one Type"
    assert result.columns == ("network", "executor", "images/s", "times float")
    one = (
        (label, gpu.INTEGER, "800 ± 0.0 %", "3.00 ± 0 %"),
        ("", gpu.REPLAYED, "1,600 ± 0.0 %", "6.00 ± 0 %"),
        ("", gpu.FLOAT, "267 ± 0.0 %", "1"),
    )
    assert result.rows == one * 2
    assert list(result.figures) == [f"{label}: {name} on the GPU, times float" for name in seconds]
    assert list(result.figures.values()) == pytest.approx([3, 6, 1])


def test_the_figures_of_several_networks_are_kept_apart(
    monkeypatch: pytest.MonkeyPatch, small_program: Program
) -> None:
    """Of two programs, the second of which runs half as fast, at two sizes of a batch."""
    other = dataclasses.replace(small_program, header={**small_program.header, "recipe": "another recipe"})
    seconds = {small_program.recipe: 0.1, other.recipe: 0.2}
    monkeypatch.setattr(networks, "float_model", lambda name: None)
    monkeypatch.setattr(
        networks, "_candidates", lambda program, *_: {networks.INTEGER: seconds[program.recipe], networks.FLOAT: 0.4}
    )
    monkeypatch.setattr(
        networks,
        "alternate",
        lambda names, rounds, pause: {name: Times([second] * rounds, [1.0]) for name, second in names.items()},
    )
    figures = {}
    for batch in (32, 16):
        result = networks.networks([small_program, other], batch, 3)
        assert [row[0] for row in result.rows] == [
            f"small, {small_program.recipe}",
            "",
            "small, another recipe",
            "",
        ]
        figures.update(result.figures)
    assert figures == pytest.approx(
        {
            f"small, {recipe}, batch {batch}: {name}, times float": ratio
            for batch in (32, 16)
            for recipe, integer in ((small_program.recipe, 4), ("another recipe", 2))
            for name, ratio in ((networks.INTEGER, integer), (networks.FLOAT, 1))
        }
    )


@pytest.mark.parametrize("name", ["small", "deit_tiny_patch16_224.no_such_weights"])
def test_a_program_without_a_float_network_is_refused(name: str, small_program: Program) -> None:
    pytest.importorskip("timm")
    program = dataclasses.replace(small_program, header={**small_program.header, "network": name})
    with pytest.raises(HwsimError, match=f"^the program's network '{name}' is neither .*; give --program others$"):
        networks.networks([program], 2, 2)


def test_the_default_programs_are_those_of_the_targets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_graph: FloatGraph, small_program: Program
) -> None:
    """A small network in place of DeiT-Tiny; made once, then read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hwsim.networks.load.load_network", lambda name, random_weights: small_graph)
    monkeypatch.setattr("hwsim.cli.bench.open_program", lambda path: small_program)
    measured: list[list[str]] = []

    def measure(programs: list[Program], *_: Any) -> Table:
        measured.append([program.recipe for program in programs])
        return table(1.0)

    for part in ("networks", "gpu"):
        monkeypatch.setattr(f"hwsim.bench.{part}.{part}", measure)
    command = ["bench", "--part", "networks", "--part", "gpu", "--output", "speed.json"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert measured == [[small_program.recipe, "fq-vit 8/8/4 pts lis", "adalog 4/4/4 short search"]] * 2
    assert result.stderr.count("calibrating deit_tiny_patch16_224 with random weights") == 2
    kinds = {node.spec.kind for path in Path("build/programs").glob("*adalog*") for node in load_program(path).nodes}
    assert "adalog_matmul" in kinds


def test_growth_of_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an executor whose time is that of tokens squared and whose memory is 100 MiB and one for each token."""
    monkeypatch.setattr(growth, "RANGES", {"tokens": (10, 20, 40), "depth": (1, 2)})
    monkeypatch.setattr(growth, "IMAGES", (64, 128))
    monkeypatch.setattr(growth, "BARE", {**growth.BARE, "tokens": 0})
    monkeypatch.setattr(growth, "_program", lambda point: point["tokens"])
    monkeypatch.setattr(growth, "_measure", lambda tokens, *_, **__: (tokens**2, 100.0 + tokens))
    result = growth.growth(2)
    assert [len(row) for row in result.rows] == [len(result.columns)] * 7
    assert [row[3:] for row in result.rows[:3]] == [("", ""), ("", ""), ("2.00", "1.00")]
    assert result.figures == pytest.approx(
        {
            "tokens 10: peak memory, MiB": 110,
            "tokens 20: peak memory, MiB": 120,
            "tokens 40: peak memory, MiB": 140,
            "time against tokens, exponent": 2,
            "memory against tokens, exponent": 1,
            "depth 1: peak memory, MiB": 297,
            "depth 2: peak memory, MiB": 297,
            "time against depth, exponent": 0,
            "memory against depth, exponent": 0,
            "images 64: peak memory, MiB": 297,
            "images 128: peak memory, MiB": 297,
        }
    )
    assert "above the 100.0 MiB" in result.note


def test_memory_does_not_grow_with_the_number_of_images(small_program: Program) -> None:
    """A process that runs 16 384 images needs at most 8 MiB more than one of 1024; run at once, they take 60."""
    few, many = (growth._measure(small_program, images, 1, repeated=True)[1] for images in (1024, 16384))
    assert many < few + 8
