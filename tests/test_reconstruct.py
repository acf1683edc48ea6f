"""Block reconstruction: blocks, learned rounding, learned scales, and what becomes of a calibrated network."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import quick, small_swin
from golden.errors import HwsimError
from hwsim.audit import audit
from hwsim.cli import main
from hwsim.data import ImageSet
from hwsim.networks.graph import FloatGraph, FloatNode
from hwsim.networks.swin_transformer import swin_transformer_graph
from hwsim.program import save_program
from hwsim.quantize.adalog import adalog, reconstruction_table, repq_vit
from hwsim.quantize.calibrate import Calibration, calibrate
from hwsim.quantize.lowering import lower
from hwsim.quantize.quantizers.adalog import AdaLogGrid
from hwsim.quantize.quantizers.log_sqrt2 import LogSqrt2Grid, ShiftLogSqrt2Grid
from hwsim.quantize.quantizers.logarithm import GELU_DEPTH
from hwsim.quantize.quantizers.protocol import Grid
from hwsim.quantize.quantizers.shift_adalog import ShiftAdaLogGrid
from hwsim.quantize.quantizers.uniform import HeadGrid, UniformGrid
from hwsim.quantize.reconstruct.activations import LEAST_SHARE, learned_grid
from hwsim.quantize.reconstruct.blocks import blocks
from hwsim.quantize.reconstruct.learn import reconstruct
from hwsim.quantize.reconstruct.rounding import LearnedRounding, undecided
from hwsim.quantize.reconstruct.settings import Reconstruction
from hwsim.quantize.reconstruct.steps import Group, falling, take_steps
from hwsim.quantize.weights import AsymmetricWeights, SymmetricWeights
from hwsim.tables import ResultTable

RNG = np.random.default_rng(5)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def searched(small_graph: FloatGraph, small_images: np.ndarray) -> Calibration:
    """RepQ-ViT at four bits: a search of no time."""
    return calibrate(small_graph, small_images, repq_vit("4/4/4"))


# --- blocks ---


def test_blocks_of_a_vit_are_its_transformer_blocks_and_what_lies_between(small_graph: FloatGraph) -> None:
    found = blocks(small_graph)
    assert [block.name for block in found] == ["patch_embed.proj", "blocks.0", "blocks.1", "head"]
    assert [node for block in found for node in block.nodes] == list(small_graph.nodes)
    assert [block.source for block in found] == ["", "pos_add", "blocks.0.add2", "blocks.1.add2"]


def test_blocks_of_a_swin() -> None:
    graph = swin_transformer_graph(small_swin(), "swin", mean=(0.5,) * 3, std=(0.25,) * 3)
    names = [block.name for block in blocks(graph)]
    assert names == [
        "patch_embed.proj", "layers.0.blocks.0", "layers.0.blocks.1", "layers.1.downsample.reduction",
        "layers.1.blocks.0", "layers.1.blocks.1", "head.fc",
    ]  # fmt: skip


def test_a_block_with_a_way_around_it_is_refused(small_graph: FloatGraph) -> None:
    around = FloatNode("around", "add", "", ("blocks.1.add2", "blocks.0.add1"))
    place = next(index for index, node in enumerate(small_graph.nodes) if node.name == "blocks.1.add2") + 1
    nodes = (*small_graph.nodes[:place], around, *small_graph.nodes[place:])
    with pytest.raises(HwsimError, match=r"small: blocks\.0 has more than one input or output"):
        blocks(dataclasses.replace(small_graph, nodes=nodes))


# --- rounding ---


@pytest.mark.parametrize("quantizer", [AsymmetricWeights(4), SymmetricWeights(3)])
def test_rounding_begins_at_the_weights_and_settles_at_the_nearest_codes(quantizer: Any) -> None:
    weight = RNG.normal(size=(6, 20)).astype(np.float32)
    quantized = quantizer.quantize(weight)
    rounding = LearnedRounding(weight, quantized, CPU)
    # Where no code is clipped, the soft weights are the float ones.
    unsigned, zero = quantized.unsigned
    position = weight / quantized.scale[:, None] + zero[:, None]
    inside = (position >= 0) & (position <= (1 << quantized.bits) - 1)
    assert inside.mean() > 0.8 and unsigned.min() >= 0
    soft = rounding.soft(rounding.share()).detach().numpy()
    np.testing.assert_allclose(soft[inside], weight[inside], atol=2e-4)
    settled = rounding.settled()
    assert np.array_equal(settled.codes, quantized.codes)
    assert settled.bits == quantized.bits and np.array_equal(settled.scale, quantized.scale)


def test_settled_codes_stay_among_the_codes() -> None:
    weight = np.array([[-1.0, -0.99, 0.3, 1.0]], np.float32)
    for quantizer, lowest, highest in ((AsymmetricWeights(2), 0, 3), (SymmetricWeights(2), -2, 1)):
        rounding = LearnedRounding(weight, quantizer.quantize(weight), CPU)
        with torch.no_grad():
            rounding.variable.fill_(9)  # all up
        codes = rounding.settled().codes
        assert codes.max() == highest and codes.min() >= lowest


def test_regulariser_counts_what_is_undecided() -> None:
    shares = torch.tensor([0.0, 1.0, 0.5, 0.25])
    # |2 h - 1| is 1, 1, 0 and 1/2.
    assert float(undecided(shares, 2.0)) == pytest.approx(1 + 3 / 4)
    assert float(undecided(shares, 20.0)) == pytest.approx(2, abs=1e-5)
    assert float(undecided(shares, torch.tensor([0.0]))) == 0


def test_learned_rounding_finds_what_nearest_rounding_misses() -> None:
    """A layer whose inputs are alike, so that roundings must make up for each other; all 256 of a row are tried."""
    weight = RNG.uniform(-2, 2, (12, 8)).astype(np.float32)
    x = (RNG.normal(size=(8, 40)) + 2 * RNG.normal(size=(1, 40))).astype(np.float32)
    quantized = AsymmetricWeights(4).quantize(weight, np.ones(12), np.full(12, 7.0))
    wanted = torch.from_numpy(weight @ x)

    def errors(codes: np.ndarray) -> np.ndarray:
        return np.square((codes - weight) @ x).mean(axis=1)

    tried = np.stack([errors(np.floor(weight) + np.array(up)) for up in itertools.product((0, 1), repeat=8)])
    rounding = LearnedRounding(weight, quantized, CPU)
    count = 500
    betas = torch.tensor(Reconstruction(iterations=count).betas)

    def loss(place: torch.Tensor) -> torch.Tensor:
        share = rounding.share()
        error = (rounding.soft(share) @ torch.from_numpy(x) - wanted).square().mean(dim=1).sum()
        return error + 1.0 * undecided(share, betas[place])

    take_steps([Group([rounding.variable], [0.02] * count)], loss, CPU, settle=lambda: None)
    learned, nearest = errors(rounding.settled().centred), errors(quantized.centred)
    assert np.array_equal(quantized.centred, np.rint(weight))
    assert learned.sum() < nearest.sum() / 2
    # Among the best tenth of the roundings of each row.
    assert ((tried < learned - 1e-6).mean(axis=0) < 0.1).all()


# --- scales ---

GRIDS: list[Grid] = [
    UniformGrid(0.25, 5, 4),
    UniformGrid(0.25, -3, 4),
    UniformGrid(0.25, 20, 4),
    HeadGrid(np.array([0.5, 0.125], np.float32), np.array([3, 9]), 4),
    AdaLogGrid(4, 25),
    AdaLogGrid(3, 17, 0.75),
    ShiftAdaLogGrid(4, 20, 1.5),
    LogSqrt2Grid(4, 0.5),
    ShiftLogSqrt2Grid(3, 2.0),
]


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_learned_grids_begin_as_they_are(grid: Grid) -> None:
    logarithmic = isinstance(grid, AdaLogGrid | LogSqrt2Grid)
    low, high = (1e-4, 1.0) if logarithmic else (-GELU_DEPTH, 3.0)
    x = torch.from_numpy(RNG.uniform(low, high, (3, 2, 5, 40)).astype(np.float32))
    learned = learned_grid(grid, "point", CPU)
    expected = grid.values(grid.codes(x))
    assert torch.allclose(learned(x), expected, atol=1e-6)
    assert (learned(x) != x).any()
    assert repr(learned.settled()) == repr(grid)


def test_uniform_gradients_are_those_of_lsq() -> None:
    """LSQ, equation 3, at values that lie inside, below and above the codes -2..5."""
    learned = learned_grid(UniformGrid(0.5, 2, 3), "point", CPU)
    x = torch.tensor([0.7, -3.0, 9.0], requires_grad=True)
    for place, of_x, of_step in ((0, 1.0, 1 - 1.4), (1, 0.0, -2.0), (2, 0.0, 5.0)):
        got = torch.autograd.grad(learned(x)[place], [x, learned.share])
        assert float(got[0][place]) == of_x
        # The share is of a step of 0.5.
        assert float(got[1]) == pytest.approx(0.5 * of_step)


def test_logarithmic_gradients() -> None:
    """Base 2, scale 0.8: 0.3 is code 1; 0.9 lies above the scale, 1e-6 past the last code."""
    learned = learned_grid(AdaLogGrid(3, 37, 0.8), "point", CPU)
    x = torch.tensor([0.3, 0.9, 1e-6], requires_grad=True)
    value = learned(x)
    assert value.tolist() == pytest.approx([0.4, 0.8, 0.0])
    for place, of_x, of_scale in ((0, 0.4 / 0.3, 0.0), (1, 0.0, 1.0), (2, 0.0, 0.0)):
        got = torch.autograd.grad(value[place], [x, learned.share], retain_graph=True)
        assert float(got[0][place]) == pytest.approx(of_x)
        assert float(got[1]) == pytest.approx(0.8 * of_scale)


def test_a_learned_scale_becomes_that_of_the_grid() -> None:
    learned = learned_grid(ShiftAdaLogGrid(4, 20, 1.5), "point", CPU)
    with torch.no_grad():
        learned.share.mul_(1.25)
    grid = learned.settled()
    assert isinstance(grid, ShiftAdaLogGrid) and grid.scale == 1.875
    x = torch.linspace(-GELU_DEPTH, 3, 300)
    assert torch.allclose(learned(x), grid.values(grid.codes(x)), atol=1e-6)


def test_rates_and_exponents() -> None:
    settings = Reconstruction(iterations=10)
    assert settings.betas == pytest.approx([0, 0, 20, 17.75, 15.5, 13.25, 11, 8.75, 6.5, 4.25])
    # As far in all as 20 000 published steps of 1e-3 and 4e-5.
    assert [rate * 10 for rate in settings.rates] == pytest.approx([20, 0.8])
    assert Reconstruction(iterations=20_000).rates == (1e-3, 4e-5)
    assert falling(4.0, 4) == pytest.approx([4, 2 + 2**0.5 * 2 / 2, 2, 2 - 2**0.5])


# --- networks ---


def quickly(kind: str = "brecq-lsq", **changes: Any) -> Reconstruction:
    return dataclasses.replace(Reconstruction(activations=kind == "brecq-lsq", iterations=25, batch=8), **changes)


@pytest.mark.parametrize("inputs", ["float", "quantized"])
@pytest.mark.parametrize("kind", ["brecq", "brecq-lsq"])
def test_errors_fall_and_the_program_follows(
    kind: str, inputs: str, searched: Calibration, small_images: np.ndarray
) -> None:
    seen: list[int] = []
    settings = quickly(kind, inputs=inputs)
    found = reconstruct(searched, small_images, settings, progress=seen.append)
    assert sum(seen) == 4 * settings.iterations
    assert list(found.reconstructed) == ["patch_embed.proj", "blocks.0", "blocks.1", "head"]
    assert all(after <= before for before, after in found.reconstructed.values())
    assert found.reconstructed["blocks.0"][1] < 0.9 * found.reconstructed["blocks.0"][0]
    _check_neighbours(found, searched)
    changed = [name for name, grid in searched.grids.items() if repr(found.grids[name]) != repr(grid)]
    assert ("blocks.0.norm1" in changed and "blocks.0.attn.softmax" in changed) == (kind == "brecq-lsq")
    assert audit(found, lower(found), small_images).same_prediction > 0.8


def _check_neighbours(found: Calibration, searched: Calibration) -> None:
    """Every code is the one below or above its weight."""
    moved = 0
    for name, weight in found.weights.items():
        exact = found.graph[name].parameters["weight"] / weight.scale[:, None] + weight.unsigned[1][:, None]
        exact = np.clip(exact, 0, (1 << weight.bits) - 1)
        assert (np.abs(weight.codes - exact) < 1 + 1e-4).all(), name
        moved += int((weight.codes != searched.weights[name].codes).sum())
    assert moved


def test_a_code_that_is_no_neighbour_is_seen(searched: Calibration, small_images: np.ndarray) -> None:
    found = reconstruct(searched, small_images, quickly("brecq"))
    codes = found.weights["blocks.0.mlp.fc1"].codes
    place = np.unravel_index(codes.argmin(), codes.shape)
    codes[place] += 3
    with pytest.raises(AssertionError, match=r"blocks\.0\.mlp\.fc1"):
        _check_neighbours(found, searched)


def test_a_block_that_does_not_gain_keeps_what_it_had(searched: Calibration, small_images: np.ndarray) -> None:
    """Scales that are a sixteenth or fifty times what they were."""
    found = reconstruct(searched, small_images, quickly(iterations=1, weight_rate=1e-12, activation_rate=50.0))
    for name, (before, after) in found.reconstructed.items():
        assert after == before, name
    assert {name: repr(grid) for name, grid in found.grids.items()} == {n: repr(g) for n, g in searched.grids.items()}
    assert all(np.array_equal(found.weights[name].codes, w.codes) for name, w in searched.weights.items())


def test_same_seed_same_program(small_graph: FloatGraph, small_images: np.ndarray, tmp_path: Path) -> None:
    recipe = repq_vit("4/4/4", reconstruct="brecq-lsq", iterations=6, search_images=8)
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        changed = dataclasses.replace(recipe, reconstruct=dataclasses.replace(recipe.reconstruct, seed=seed))  # type: ignore[type-var]
        save_program(lower(calibrate(small_graph, small_images, changed)), tmp_path / name)
    first, second, other = ((tmp_path / name).read_bytes() for name in ("first", "second", "other"))
    assert first == second != other


def test_the_search_sees_the_first_images(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    eight = calibrate(small_graph, small_images[:8], repq_vit("4/4/4"))
    same = calibrate(small_graph, small_images, repq_vit("4/4/4", search_images=8))
    assert {name: repr(grid) for name, grid in eight.grids.items()} == {n: repr(g) for n, g in same.grids.items()}
    assert eight.images == same.images == 8
    found = calibrate(small_graph, small_images, repq_vit("4/4/4", search_images=8, reconstruct="brecq", iterations=1))
    assert found.images == 24


@pytest.mark.parametrize("name", ["repq-vit", "adalog"])
def test_the_search_sees_32_images_unless_told_otherwise(
    name: str, small_graph: FloatGraph, small_images: np.ndarray
) -> None:
    """As in the papers, with a reconstruction and without; images beyond change nothing."""
    many = np.concatenate([small_images, 255 - small_images])
    make = {"repq-vit": repq_vit, "adalog": adalog}[name]
    assert make("4/4/4").search_images == make("4/4/4", reconstruct="brecq").search_images == 32
    recipes = [make("4/4/4"), make("4/4/4", search_images=0)]
    if name == "adalog":
        recipes = [quick(recipe) for recipe in recipes]
    first, default = (calibrate(small_graph, images, recipes[0]) for images in (many[:32], many))
    assert default.images == 32
    assert repr(default.grids) == repr(first.grids) and default.ranges == first.ranges
    whole = calibrate(small_graph, many, recipes[1])
    assert whole.images == 48 and repr(whole.grids) != repr(first.grids)


def test_adalog_learns_scales_behind_softmax_and_gelu(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    recipe = adalog("3/3/3", rounds=1)
    search = dataclasses.replace(recipe.search, candidates=16, steps=1)  # type: ignore[type-var]
    found = calibrate(small_graph, small_images[:8], dataclasses.replace(recipe, search=search))
    assert found.tried > 0
    learned = reconstruct(found, small_images, quickly())
    program = lower(learned)
    attention, hidden = (learned.grids[f"blocks.0.{name}"] for name in ("attn.softmax", "mlp.gelu"))
    assert isinstance(attention, AdaLogGrid) and isinstance(hidden, ShiftAdaLogGrid)
    assert attention.q == found.grids["blocks.0.attn.softmax"].q  # type: ignore[attr-defined]
    assert hidden.scale != found.grids["blocks.0.mlp.gelu"].scale  # type: ignore[attr-defined]
    assert audit(learned, program, small_images).same_prediction > 0.8


def test_a_scale_of_attention_reaches_the_program(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """Codes at scale 1/2 are those at 1 of twice the value: 37 steps of 2**(q/37) later each."""
    recipe = repq_vit("8/8/4")
    recipe = dataclasses.replace(recipe, points={**recipe.points, "attention": repq_vit().points["attention"]})
    found = calibrate(small_graph, small_images, recipe)
    grids = {
        name: AdaLogGrid(4, 20, 0.5) if isinstance(grid, LogSqrt2Grid) else grid for name, grid in found.grids.items()
    }
    changed = dataclasses.replace(found, grids=grids)
    result = audit(changed, lower(changed), small_images)
    softmax = next(point for point in result.points if point.point == "blocks.0.attn.softmax")
    context = next(point for point in result.points if point.point == "blocks.0.attn.context")
    assert softmax.local.share_equal > 0.99 and context.local.share_equal > 0.98


# --- errors ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "at least one iteration"),
        ({"batch": 0}, "at least one iteration and one image"),
        ({"inputs": "mixed"}, "must be float or quantized, not 'mixed'"),
        ({"warmup": 1.0}, "share from 0 to below 1"),
        ({"last_beta": 30.0}, "need 0 < last <= first"),
        ({"strength": -1.0}, "not negative"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HwsimError, match=message):
        Reconstruction(**changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reconstruct": "adaround"}, "must be one of none, brecq, brecq-lsq, not 'adaround'"),
        ({"iterations": 5}, "add --reconstruct brecq"),
        ({"block_inputs": "float"}, "add --reconstruct brecq"),
        ({"reconstruct": "brecq", "search_images": -1}, "images of the search cannot be -1"),
    ],
)
def test_recipes_refuse_what_goes_without_a_reconstruction(options: dict[str, Any], message: str) -> None:
    for recipe in (adalog, repq_vit):
        with pytest.raises(HwsimError, match=message):
            recipe(**options)


def test_no_images_are_refused(searched: Calibration, small_images: np.ndarray) -> None:
    with pytest.raises(HwsimError, match="a reconstruction needs at least one image"):
        reconstruct(searched, small_images[:0], quickly())


def test_a_grid_that_is_not_learned_is_named(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    recipe = adalog("4/4/4", gelu="twin", rounds=1)
    search = dataclasses.replace(recipe.search, candidates=16, steps=1)  # type: ignore[type-var]
    found = calibrate(small_graph, small_images[:4], dataclasses.replace(recipe, search=search))
    with pytest.raises(HwsimError, match=r"blocks\.0\.mlp\.gelu: the scale of a TwinGeluGrid is not learned"):
        reconstruct(found, small_images, quickly())
    assert reconstruct(found, small_images, quickly("brecq", iterations=2)).reconstructed


def test_an_error_that_is_not_finite_is_refused(searched: Calibration, small_images: np.ndarray) -> None:
    grid = searched.grids["blocks.0.norm1"]
    broken = dataclasses.replace(searched, grids={**searched.grids, "blocks.0.norm1": UniformGrid(np.nan, 0, 4)})
    assert isinstance(grid, UniformGrid)
    with pytest.raises(HwsimError, match=r"the error of blocks\.0 is nan"):
        reconstruct(broken, small_images, quickly(iterations=1))


def test_steps_stay_above_zero(searched: Calibration, small_images: np.ndarray) -> None:
    found = reconstruct(searched, small_images, quickly(activation_rate=50.0, iterations=4))
    for name, grid in found.grids.items():
        first = np.asarray(searched.grids[name].scale)  # type: ignore[attr-defined]
        assert (np.asarray(grid.scale) >= LEAST_SHARE * first * 0.999).all(), name  # type: ignore[attr-defined]


# --- commands and tables ---


def test_rows_share_a_search(
    small_graph: FloatGraph, small_images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = []

    def counted(*arguments: Any, **options: Any) -> Calibration:
        searches.append(1)
        return calibrate(*arguments, **options)

    monkeypatch.setattr("hwsim.quantize.calibrate.calibrate", counted)
    labels = np.arange(len(small_images)) % 7
    table = ResultTable(small_graph, small_images, ImageSet(small_images, labels), folder=tmp_path, code="1")
    whole = [repq_vit(search_images=8, reconstruct=kind, iterations=2 * (kind != "none")) for kind in
             ("none", "brecq", "brecq-lsq")]  # fmt: skip
    rows = [table.row(recipe.name, recipe, lambda label, total: lambda count: None) for recipe in whole]
    assert len(searches) == 1
    assert [row.calibration_images for row in rows] == [8, 24, 24]
    assert rows[0].calibration_seconds <= rows[1].calibration_seconds
    # Another table has the same recipe by another label.
    again = table.row("other label", whole[1], lambda label, total: lambda count: None)
    assert again == dataclasses.replace(rows[1], label="other label", calibration_seconds=0)


def test_the_table_has_the_papers_rows() -> None:
    rows = reconstruction_table()
    assert len(rows) == 18 and len({recipe.name for recipe in rows.values()}) == 18
    assert {recipe.search_images for recipe in rows.values()} == {32}
    activations = rows["AdaLog, BRECQ and LSQ 3/3/3"].reconstruct
    assert activations is not None and activations.activations
    assert rows["uniform 4/4/4"].reconstruct is None


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "p.safetensors"
    options = ["--recipe", "repq-vit", "--reconstruct", "brecq", "--iterations", "2", "--images", "8"]
    main(["calibrate", *options, "-o", str(program)])
    shown = capsys.readouterr().out
    assert "repq-vit 4/4/4 brecq 2" in shown and "error behind" in shown and "blocks.5" in shown
    assert program.is_file()
    table = ["table", "adalog-reconstruction", "--rows", "RepQ-ViT, BRECQ 4*", "--iterations", "1"]
    main([*table, "--images", "8", "--on-images", "20", "-o", str(tmp_path)])
    assert "| RepQ-ViT, BRECQ 4/4/4 |" in (tmp_path / "adalog-reconstruction-embedded.md").read_text()
    assert ",repq-vit 4/4/4 brecq 1," in (tmp_path / "adalog-reconstruction-embedded.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["calibrate", "--recipe", "adalog", "--reconstruct", "adaround"], "must be one of none, brecq, brecq-lsq"),
        (["calibrate", "--recipe", "fq-vit", "--reconstruct", "brecq"], "recipe fq-vit has no reconstruct"),
        (
            ["calibrate", "--device", "abacus"],
            "--device abacus: there is no such device here; choose cpu, cuda or cuda:N (GPU number N)",
        ),
        (["calibrate", "--device", "cuda:99"], "--device cuda:99: torch cannot use it ("),
        (["train-embedded", "--device", "tpu"], "--device tpu: there is no such device here"),
        (["table", "fq-vit", "--iterations", "5"], "--iterations: no row of fq-vit is reconstructed"),
    ],
)
def test_bad_input(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
