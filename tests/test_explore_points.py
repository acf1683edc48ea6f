"""What a point of an exploration is: its figures, costs and command, from the sweep to its Verilog."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from plotly.offline import get_plotlyjs

from golden.errors import HwsimError
from hwsim.cli import cli
from hwsim.cli.calibrate import calibrate_command
from hwsim.cli.explore import default_costs, make_bench, network_arguments, write_results
from hwsim.cli.hardware_cost import hardware_modules, hardware_of, writable
from hwsim.cli.source import make_recipe, recipe_arguments, recipe_options
from hwsim.cost.accelerator import Accelerator
from hwsim.execute import Executor
from hwsim.explore.bench import Bench
from hwsim.explore.records import Record, pack
from hwsim.explore.space import option_fields, recipe_of
from hwsim.identity import program_digest
from hwsim.networks.embedded import load_test_set
from hwsim.program import load_program, save_program
from hwsim.quantize.recipes import RECIPES
from hwsim.shipped import load_shipped
from rtl import fpga_tools
from rtl.synthesis.families import family
from rtl.synthesis.flow import count_cells
from rtl.verilog import export


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
