"""Result tables: rows are measured once, kept, and measured again after a change."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from conftest import quick
from golden.errors import HwsimError
from hwsim.cli import main
from hwsim.data import ImageSet
from hwsim.networks.graph import FloatGraph
from hwsim.quantize.adalog import adalog, repq_vit
from hwsim.quantize.ptq4vit import base_ptq
from hwsim.quantize.quantizers.log2 import Log2
from hwsim.quantize.quantizers.power_of_two import PowerOfTwo
from hwsim.quantize.quantizers.twin import TwinSoftmax
from hwsim.quantize.quantizers.uniform import Uniform
from hwsim.quantize.recipe import UNIFORM_ROLES, Recipe, fq_vit, fq_vit_table
from hwsim.quantize.weights import SymmetricWeights
from hwsim.tables import Progress, ResultTable, markdown


def quiet(label: str, total: int):  # type: ignore[no-untyped-def]
    return lambda count: None


def new_table(graph: FloatGraph, images: np.ndarray, folder: Path, code: str = "1") -> ResultTable:
    labels = np.arange(len(images)) % 7
    return ResultTable(graph, images[:8], ImageSet(images, labels), folder=folder, code=code)


def test_a_row_is_measured_once(small_graph: FloatGraph, small_images: np.ndarray, tmp_path: Path) -> None:
    recipe = fq_vit("8/8/4", calibration_batch=8)
    row = new_table(small_graph, small_images, tmp_path).row("first", recipe, quiet)
    assert row.images == 24 and row.calibration_images == 8 and row.integer_top1 is not None
    (kept,) = tmp_path.iterdir()
    changed = json.loads(kept.read_text()) | {"fake_quant_top1": 12.0}
    kept.write_text(json.dumps(changed))
    assert new_table(small_graph, small_images, tmp_path).row("first", recipe, quiet).fake_quant_top1 == 12.0
    # Other code or another recipe is measured, not read.
    assert new_table(small_graph, small_images, tmp_path, "2").row("first", recipe, quiet) == row
    other = new_table(small_graph, small_images, tmp_path).row("first", fq_vit("8/8/8", calibration_batch=8), quiet)
    assert other.recipe != row.recipe
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("recipe", "stage"),
    [
        (fq_vit("8/8/8", calibration_batch=4), ("row: calibrating", [4, 4])),
        (base_ptq("8/8/8"), ("row: searching layers", [1] * 14)),
        (repq_vit("8/8/8"), ("row: searching layers", [1] * 14)),
        (quick(adalog("8/8/8")), ("row: searching layers", [1] * 14)),
    ],
    ids=lambda value: value.name if isinstance(value, Recipe) else "",
)
def test_every_stage_tells_its_progress(
    recipe: Recipe, stage: tuple[str, list[int]], small_graph: FloatGraph, small_images: np.ndarray, tmp_path: Path
) -> None:
    """Of a search by layers, which take the time: here two blocks of six products, and two more."""
    seen: list[tuple[str, int, list[int]]] = []

    def begin(label: str, total: int) -> Progress:
        seen.append((label, total, []))
        return seen[-1][2].append

    new_table(small_graph, small_images, tmp_path).row("row", recipe, begin)
    assert [(label, total) for label, total, _ in seen] == [
        ("float", 24),
        (stage[0], sum(stage[1])),
        ("row: fake-quantized", 24),
        ("row: integer", 24),
    ]
    assert all(sum(done) == total for _, total, done in seen)
    assert seen[1][2] == stage[1]


def test_a_recipe_without_a_program_says_why(small_graph: FloatGraph, small_images: np.ndarray, tmp_path: Path) -> None:
    base = fq_vit("8/8/8", calibration_batch=8)
    recipe = Recipe("released", base.weights, {**base.points, "attention": TwinSoftmax(8, as_released=True)})
    row = new_table(small_graph, small_images, tmp_path).row("released", recipe, quiet)
    assert row.integer_top1 is None and "no integer program has it; calibrate without" in row.note
    assert "| released |" in markdown("small", [row], "hwsim table") and row.note in markdown("small", [row], "x")


def test_a_row_that_cannot_be_calibrated_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Two bits make the score scale so coarse that i-exp has no constants.
    arguments = ["table", "widths", "--on-images", "40", "--images", "20", "--batch", "20", "-o", str(tmp_path)]
    main([*arguments, "--rows", "FQ-ViT 8*", "--rows", "FQ-ViT 2*"])
    assert "no integer program of FQ-ViT 2/2/2: score scale" in capsys.readouterr().out
    (row,) = (line for line in (tmp_path / "widths-embedded.md").read_text().splitlines() if "2/2/2" in line)
    assert row.startswith("| FQ-ViT 2/2/2 | - | - | score scale")
    with pytest.raises(SystemExit):  # all of them refused
        main([*arguments, "--rows", "FQ-ViT 2*"])
    assert "hwsim: score scale" in capsys.readouterr().err


def test_unlabelled_images_are_refused(small_graph: FloatGraph, small_images: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(HwsimError, match="a table needs labelled images"):
        ResultTable(small_graph, small_images, ImageSet(small_images, None), folder=tmp_path, code="1")


def test_rows_of_the_published_table() -> None:
    """What a label says: observer, power-of-two scales and attention."""
    ranges = {"MinMax": "minmax", "EMA": "ema", "Percentile": "percentile", "OMSE": "omse"}
    parts = {
        " 8/8/8": (False, False),
        " w/ PTS 8/8/8": (True, False),
        " w/ PTS, LIS 8/8/4": (True, True),
        " w/ LIS 8/8/4": (False, True),
    }
    rows = fq_vit_table(10)
    assert list(rows) == [label + part for label in ranges for part in parts]
    assert len({recipe.name for recipe in rows.values()}) == 16
    for (label, observer), (part, (pts, lis)) in itertools.product(ranges.items(), parts.items()):
        recipe = rows[label + part]
        uniform = Uniform(8, observer)
        assert recipe.points["residual"] == (PowerOfTwo(8) if pts else uniform)
        assert recipe.points["attention"] == (Log2(4) if lis else uniform)
        assert all(recipe.points[role] == uniform for role in UNIFORM_ROLES)
        assert recipe.weights == SymmetricWeights(8)
        assert recipe.calibration_batch == 10


@pytest.mark.parametrize("network", [[], ["--network", "embedded"], ["embedded", "--network", "embedded"]])
def test_command(network: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["table", "fq-vit", "--rows", "MinMax w/ PTS 8*", "--on-images", "40", "--images", "20"]
    main([*arguments, *network, "-o", str(tmp_path)])
    assert "MinMax w/ PTS 8/8/8" in capsys.readouterr().out
    lines = (tmp_path / "fq-vit-embedded.csv").read_text().splitlines()
    assert len(lines) == 2 and lines[0].startswith("label,recipe,calibration_images,images,float_top1")
    assert "| MinMax w/ PTS 8/8/8 |" in (tmp_path / "fq-vit-embedded.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["table", "fq-vat"], "there is no table 'fq-vat'; choose one of fq-vit"),
        (
            ["table", "fq-vit", "embedded", "--network", "embedded-swin"],
            "--network embedded-swin: the network is embedded already; name it once",
        ),
        (["table", "fq-vit", "--network", "no-such-network"], "'no-such-network' is neither a file"),
        (["table", "fq-vit", "--rows", "LSQ*"], "no row matches LSQ*; the rows are MinMax 8/8/8"),
    ],
)
def test_bad_input(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([*arguments, "-o", str(tmp_path / "out")])
    assert done.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
