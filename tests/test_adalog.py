"""AdaLog and RepQ-ViT: quantizers, searches, reparameterization, recipes, and their integer programs."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import quick, small_swin
from golden.adalog import AdaLogDecodeSpec, adalog_tables
from golden.errors import HwsimError
from golden.published.adalog import adalog_dequantize, adalog_quantize
from hwsim.audit import audit
from hwsim.cli import main
from hwsim.cli.hardware import hardware_layers, hardware_nodes
from hwsim.data import ImageSet
from hwsim.dump import dump_vectors
from hwsim.execute import Executor
from hwsim.networks.graph import FloatGraph, FloatNode
from hwsim.networks.interpret import Interpreter, predict
from hwsim.networks.swin_transformer import swin_transformer_graph
from hwsim.program import save_program
from hwsim.quantize.adalog import (
    adalog,
    attention_table,
    component_table,
    gelu_table,
    main_table,
    repq_vit,
    search_table,
)
from hwsim.quantize.calibrate import calibrate
from hwsim.quantize.fake_quant import FakeQuantNetwork
from hwsim.quantize.lowering import lower
from hwsim.quantize.quantizers import parse_quantizer
from hwsim.quantize.quantizers.adalog import AdaLogGrid
from hwsim.quantize.quantizers.log_sqrt2 import LogSqrt2Grid, ShiftLogSqrt2Grid
from hwsim.quantize.quantizers.logarithm import GELU_DEPTH
from hwsim.quantize.quantizers.shift_adalog import ShiftAdaLogGrid
from hwsim.quantize.quantizers.uniform import HeadGrid, Uniform, UniformGrid
from hwsim.quantize.recipe import Lowering
from hwsim.quantize.recipes import TABLES
from hwsim.quantize.reparameterize import ChannelScales, reparameterizable, reparameterize
from hwsim.quantize.search.layerwise import search_layers
from hwsim.quantize.weights import AsymmetricWeights
from hwsim.unit_vectors import unit_vectors

RNG = np.random.default_rng(11)


# --- quantizers ---


@pytest.mark.parametrize(
    ("bits", "q", "scale"), [(3, 40, 1.7), (4, 20, 3.25), (4, 37, 0.9), (6, 12, 2.0), (8, 10, 1.0)]
)
def test_shifted_codes_are_the_published_ones_of_shifted_values(bits: int, q: int, scale: float) -> None:
    grid = ShiftAdaLogGrid(bits, q, float(np.float32(scale)))
    x = np.concatenate([RNG.uniform(-GELU_DEPTH, 4, 4000), RNG.uniform(-GELU_DEPTH, -GELU_DEPTH + 1e-3, 500)])
    expected = adalog_quantize(x + GELU_DEPTH, bits, q, grid.scale)
    codes = grid.codes(torch.from_numpy(x)).numpy()
    assert np.array_equal(codes, np.where(expected < 0, 1 << bits, expected))
    values = grid.values(torch.from_numpy(codes)).numpy()
    exact = adalog_dequantize(expected, bits, q, grid.scale) - GELU_DEPTH
    np.testing.assert_allclose(values, exact, rtol=1e-6, atol=1e-6)


def test_adalog_probabilities_have_the_published_codes() -> None:
    x = np.concatenate([RNG.dirichlet(np.ones(50), 20).ravel(), [0.0, 1.0]])
    codes = AdaLogGrid(4, 25).codes(torch.from_numpy(x)).numpy()
    expected = adalog_quantize(x, 4, 25)
    # Released, a probability of 0 is clamped to 1e-15; at 4 bits that is past the last code.
    assert np.array_equal(codes, np.where(expected < 0, 16, expected))


def test_base_two_is_the_log2_quantizer() -> None:
    x = torch.from_numpy(RNG.uniform(0, 1, 3000))
    grid = AdaLogGrid(3, 37)
    codes = grid.codes(x)
    expected = (-torch.log2(x)).round()
    assert torch.equal(codes, expected.clamp(0, 8).float())
    assert torch.equal(grid.values(codes), torch.where(codes < 8, torch.exp2(-codes), 0.0))


def test_log_sqrt2_is_the_released_formula() -> None:
    x = torch.from_numpy(RNG.uniform(0, 1, 3000))
    grid = LogSqrt2Grid(4, 0.75)
    codes = grid.codes(x)
    position = (-2 * torch.log2(x / 0.75)).round()
    assert torch.equal(codes, torch.where(position >= 16, 16, position.clamp(min=0)).float())
    even = torch.where(codes % 2 == 0, 1.0, 2**0.5)
    released = torch.where(codes < 16, 0.75 * torch.exp2(-torch.ceil(codes / 2)) * even, 0.0)
    torch.testing.assert_close(grid.values(codes), released)
    shifted = ShiftLogSqrt2Grid(4, 0.75)
    torch.testing.assert_close(shifted.values(codes), released - GELU_DEPTH)


def test_weights_have_a_zero_point_each_channel() -> None:
    weight = RNG.normal(0, 1, (5, 40)).astype(np.float32) + np.arange(5, dtype=np.float32)[:, None]
    quantized = AsymmetricWeights(4).quantize(weight)
    assert quantized.zero_point is not None
    for row in range(5):
        low, high = min(0.0, float(weight[row].min())), max(0.0, float(weight[row].max()))
        step = (high - low) / 15
        assert quantized.scale[row] == pytest.approx(step, rel=1e-6)
        assert quantized.zero_point[row] == round(-low / step)
        assert np.abs(quantized.values()[row] - weight[row]).max() <= step / 2 * 1.001
    assert (quantized.codes >= 0).all()
    assert (quantized.codes <= 15).all()


def test_uniform_grids_a_head_take_each_heads_range() -> None:
    x = torch.from_numpy(RNG.normal(0, 1, (3, 2, 5, 4)) * np.array([1, 8])[:, None, None]).float()
    observer = Uniform(4, heads=True).observer()
    observer.update(x)
    grid = observer.grid(x)
    assert isinstance(grid, HeadGrid)
    for head in range(2):
        values = x[:, head]
        step = (values.max() - values.min()) / 15
        assert grid.scale[head] == pytest.approx(float(step))
        assert grid.zero_point[head] == round(-float(values.min() / step))


@pytest.mark.parametrize("text", ["adalog:9", "adalog:1", "adalog:4,q=9", "adalog:4,q=138", "shift-adalog:4,q=200"])
def test_widths_and_bases_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(HwsimError, match=r"AdaLog (takes 2 to 8 bits|q must lie between 10 and 137)"):
        parse_quantizer(text)


@pytest.mark.parametrize("text", ["log-sqrt2:9", "shift-log-sqrt2:1"])
def test_log_sqrt2_widths_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(HwsimError, match="log-sqrt2 quantizer takes 2 to 8 bits"):
        parse_quantizer(text)


def test_a_table_too_wide_for_its_memory_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["calibrate", "--recipe", "adalog", "--set", "hidden_bits=17"])
    assert done.value.code == 2
    assert "hidden_bits 17: GELU's table has 2**hidden_bits entries, which is too wide" in " ".join(
        capsys.readouterr().err.split()
    )
    assert Lowering(hidden_bits=16).hidden_bits == 16


@pytest.mark.parametrize(("name", "value"), [("mantissa_table", 32), ("shift_table", 1024)])
def test_a_table_entry_too_wide_for_its_memory_is_refused(name: str, value: int) -> None:
    spec = AdaLogDecodeSpec(code_bits=4, guard_bits=4, largest_shift=20)
    shift, mantissa = adalog_tables(4, 20)
    tables = {"shift_table": shift, "mantissa_table": mantissa}
    assert spec.check_constants(tables)
    tables[name][3] = value
    with pytest.raises(
        HwsimError, match=rf"the layer: constant '{name}' must be between 0 and .*, but reaches .*{value}"
    ):
        spec.check_constants(tables, "the layer")


# --- reparameterization ---


def test_reparameterized_network_computes_the_same(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """A gamma of 0 too, which the released code divides by."""
    nodes = []
    for node in small_graph.nodes:
        if node.name == "blocks.1.norm1":
            gamma = node.parameters["weight"].copy()
            gamma[5] = 0
            node = dataclasses.replace(node, parameters={**node.parameters, "weight": gamma})
        nodes.append(node)
    graph = dataclasses.replace(small_graph, nodes=tuple(nodes))
    found = {
        name: ChannelScales(RNG.uniform(0.05, 2, 24), RNG.integers(-3, 16, 24), RNG.normal(0, 1, 24))
        for name in reparameterizable(graph)
    }
    assert set(found) == {f"blocks.{block}.norm{norm}" for block in range(2) for norm in (1, 2)}
    changed, joint = reparameterize(graph, found)
    before, after = (predict(Interpreter(g), small_images) for g in (graph, changed))
    np.testing.assert_allclose(after, before, atol=2e-4)
    assert np.isfinite(changed["blocks.1.norm1"].parameters["weight"]).all()
    assert not changed["blocks.1.attn.qkv"].parameters["weight"][:, 5].any()
    assert all(isinstance(zero_point, int) for _, zero_point in joint.values())
    # The codes of the channels are those of the joint grid on the changed network.
    values: dict[tuple[str, str], torch.Tensor] = {}
    for which, network in (("before", graph), ("after", changed)):

        def keep(node: FloatNode, value: torch.Tensor, which: str = which) -> torch.Tensor:
            return values.setdefault((which, node.name), value)

        Interpreter(network).run(small_images[:4], after=keep)
    name = "blocks.0.norm1"
    scales, (scale, zero_point) = found[name], joint[name]
    own = np.rint((values["before", name].double().numpy() - scales.centre) / scales.scale) + scales.zero_point
    shared = np.rint(values["after", name].double().numpy() / scale) + zero_point
    assert (own == shared).mean() > 0.999
    gamma = changed["blocks.1.norm1"].parameters["weight"].copy()
    gamma[0] *= 1.5
    broken = tuple(
        dataclasses.replace(node, parameters={**node.parameters, "weight": gamma})
        if node.name == "blocks.1.norm1"
        else node
        for node in changed.nodes
    )
    wrong = predict(Interpreter(dataclasses.replace(changed, nodes=broken)), small_images)
    assert np.abs(wrong - before).max() > 1e-2


# --- recipes and programs ---

PROGRAMS = {
    "repq-vit": repq_vit("4/4/4"),
    "adalog": quick(adalog("4/4/4")),
    "adalog 3/3/3 as released": quick(adalog("3/3/3", method="released")),
    "adalog log-sqrt2": quick(adalog("4/4/4", attention="log-sqrt2", gelu="log-sqrt2")),
    "adalog log2 6/6/3": quick(adalog("6/6/3", attention="log2", gelu="log2")),
    "adalog twin": quick(adalog("6/6/6", attention="twin", gelu="twin", method="alternating")),
    "adalog float attention": quick(adalog("4/4/4", attention="float")),
    "adalog 4/4/2": quick(adalog("4/4/2")),
    "adalog uniform": quick(adalog("6/6/6", attention="uniform", gelu="uniform")),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_follows_fake_quant(name: str, small_graph: FloatGraph, small_images: np.ndarray) -> None:
    calibration = calibrate(small_graph, small_images, PROGRAMS[name])
    program = lower(calibration)
    fast, slow = (Executor(program, backend).run(small_images[:2], keep=None)[1] for backend in ("numba", "reference"))
    for node, array in slow.items():
        assert np.array_equal(fast[node], array), node
    result = audit(calibration, program, small_images)
    for point in result.points:
        assert point.local.mean < 0.06, point
        assert point.local.largest <= 1, point
    assert result.same_prediction > 0.9


def test_units_see_heads_and_linear_layers_as_plain_products(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """What the vectors say is checked when they are built; here that nothing of the layer is missing."""
    program = lower(calibrate(small_graph, small_images[:8], PROGRAMS["adalog"]))
    nodes = [node for node in program.nodes if node.name in ("blocks.0.attn.context", "blocks.0.mlp.fc2")]
    whole = {vectors.layer: vectors for vectors in dump_vectors(program, small_images, [0, 3], nodes)}
    seen = list(unit_vectors(dump_vectors(program, small_images, [0, 3], nodes)))
    heads = [vectors for vectors in seen if vectors.layer.startswith("blocks.0.attn.context.head")]
    products = [vectors for vectors in heads if vectors.spec.kind == "adalog_matmul"]
    context = whole["blocks.0.attn.context"]
    if context.spec.kind == "adalog_decode":  # its decoder comes last under the same name
        (context,) = (
            v for v in dump_vectors(program, small_images, [0, 3], nodes[:1]) if v.spec.kind == "adalog_matmul"
        )
    for vectors in products:
        assert np.array_equal(vectors.spec.compute(vectors.constants, *vectors.inputs), vectors.output)
    assert np.array_equal(np.stack([vectors.output for vectors in products], axis=-3), context.output)
    product, decoder = (vectors for vectors in seen if vectors.layer == "blocks.0.mlp.fc2")
    linear = whole["blocks.0.mlp.fc2"]
    assert (product.spec.kind, decoder.spec.kind) == ("adalog_matmul", "adalog_decode")
    assert product.accumulator is not None
    assert linear.accumulator is not None
    assert np.array_equal(product.accumulator + linear.constants["bias"], linear.accumulator)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("adalog", {"adalog_quantize", "adalog_matmul", "adalog_decode", "lookup"}),
        ("repq-vit", {"adalog_quantize", "log_sqrt2_sums", "lookup"}),
        ("adalog log-sqrt2", {"adalog_quantize", "log_sqrt2_sums", "lookup"}),
    ],
)
def test_every_layer_becomes_verilog(
    name: str, kinds: set[str], small_graph: FloatGraph, small_images: np.ndarray, tmp_path: Path
) -> None:
    """Built for what `hwsim cosim` plays: the same layers, heads and constants."""
    program = lower(calibrate(small_graph, small_images[:8], PROGRAMS[name]))
    save_program(program, tmp_path / "p.safetensors")
    chosen = hardware_layers(program, (), ())
    assert kinds <= {layer.spec.kind for layer in chosen} <= kinds | {"layernorm", "requantize", "log2_matmul"}
    played = list(unit_vectors(dump_vectors(program, small_images, [0], hardware_nodes(program, (), ()))))
    assert {(v.layer, v.spec.kind) for v in played} == {(layer.name, layer.spec.kind) for layer in chosen}
    for layer in chosen:
        (same,) = [v for v in played if (v.layer, v.spec.kind) == (layer.name, layer.spec.kind)]
        assert same.spec == layer.spec
        assert {key: array.tolist() for key, array in same.constants.items()} == {
            key: np.asarray(array).tolist() for key, array in layer.constants.items()
        }
    product = "adalog_matmul" if name == "adalog" else "log_sqrt2_sums"
    main(["rtl", product, "--program", str(tmp_path / "p.safetensors"), "-o", str(tmp_path / "rtl")])
    written = {path.name for path in (tmp_path / "rtl").iterdir()}
    heads = [f"blocks.{block}.attn.context.head{head}" for block in range(2) for head in range(2)]
    layers = [layer.name for layer in chosen if layer.spec.kind == product]
    if name != "repq-vit":  # which has one grid for all heads, and uniform codes behind GELU
        assert layers == [*heads[:2], "blocks.0.mlp.fc2", *heads[2:], "blocks.1.mlp.fc2"]
    for layer in layers:
        assert any(file.endswith(f".{layer}.constants.hex") for file in written), layer
    arguments = ["rtl", product, "--baked", "--layer", layers[1], "--name", "one"]
    main([*arguments, "--program", str(tmp_path / "p.safetensors"), "-o", str(tmp_path / "baked")])
    assert re.search(r"^module one\b", (tmp_path / "baked" / "one.v").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layer", "blocks.0.attn.context.head7"], "the program has no blocks.0.attn.context.head7"),
        (["--baked"], "--baked takes the constants of one layer, 6 are chosen; name one with --layer, such as "),
    ],
)
def test_a_head_that_is_not_there(
    arguments: list[str], said: str, small_graph: FloatGraph, small_images: np.ndarray, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    save_program(lower(calibrate(small_graph, small_images[:4], PROGRAMS["adalog"])), tmp_path / "p.safetensors")
    with pytest.raises(SystemExit) as done:
        main(["rtl", "adalog_matmul", *arguments, "--program", str(tmp_path / "p.safetensors"), "-o", str(tmp_path)])
    assert done.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_eight_bits_do_not_collapse(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    logits = predict(Interpreter(small_graph), small_images).argmax(axis=1)
    for method in ("fpcs", "released"):
        calibration = calibrate(small_graph, small_images, quick(adalog("8/8/8", method=method), steps=3))
        assert (FakeQuantNetwork(calibration).predict(small_images).argmax(axis=1) == logits).mean() > 0.95


def test_same_images_same_program(small_graph: FloatGraph, small_images: np.ndarray, tmp_path: Path) -> None:
    for number in range(2):
        save_program(lower(calibrate(small_graph, small_images[:8], PROGRAMS["adalog"])), tmp_path / str(number))
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_search_counts_what_it_tries(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    counts, behind_gelu = {}, {}
    for method in ("fpcs", "alternating", "brute-force"):
        recipe = quick(adalog("4/4/4", method=method), candidates=16, beam=1, gelu_beam=1)
        tried = search_layers(small_graph, small_images[:2], recipe).tried
        counts[method] = tried["blocks.0.attn.qkv"]
        behind_gelu[method] = tried["blocks.0.mlp.fc2"]
        if method == "alternating":
            assert calibrate(small_graph, small_images[:2], recipe).tried == sum(tried.values())
            # Of a LayerNorm's channels, 16 scales and 16 zero points.
            assert tried["blocks.0.norm1"] == 32
    # Two operands, by themselves and in one turn each: 2 steps of 16, 16 and 16, and 16 times 16 pairs.
    assert counts["alternating"] == 4 * 32
    assert counts["brute-force"] == 4 * 256
    assert 4 * 16 < counts["fpcs"] <= 4 * 32
    # The same behind GELU, where only FPCS tries all 128 bases first, by themselves and in a turn.
    assert behind_gelu["alternating"] == 4 * 32
    assert behind_gelu["brute-force"] == 4 * 256
    assert 2 * 128 + 4 * 16 < behind_gelu["fpcs"] <= 2 * 128 + 4 * 32


def test_points_that_are_no_operands_keep_their_quantizer(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    recipe = quick(adalog("4/4/4"))
    recipe = dataclasses.replace(recipe, points={**recipe.points, "logits": Uniform(6)})
    grid = calibrate(small_graph, small_images[:4], recipe).grids["head"]
    assert isinstance(grid, UniformGrid)
    assert grid.bits == 6


def test_zero_weights_are_refused(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    nodes = tuple(
        dataclasses.replace(node, parameters={**node.parameters, "weight": np.zeros_like(node.parameters["weight"])})
        if node.name == "blocks.0.mlp.fc1"
        else node
        for node in small_graph.nodes
    )
    with pytest.raises(HwsimError, match=r"all weights of blocks\.0\.mlp\.fc1 are zero"):
        calibrate(dataclasses.replace(small_graph, nodes=nodes), small_images[:4], quick(adalog("4/4/4")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": "4/4"}, "three integers"),
        ({"attention": "lis"}, "attention quantizer must be one of"),
        ({"gelu": "pts"}, "GELU quantizer must be one of"),
        ({"method": "random"}, "search method must be one of"),
        ({"rounds": 0}, "at least 1"),
    ],
)
def test_recipes_refuse_what_they_do_not_know(options: dict[str, object], message: str) -> None:
    with pytest.raises(HwsimError, match=message):
        adalog(**options)  # type: ignore[arg-type]


def test_tables_name_each_recipe_once() -> None:
    tables = ((main_table, 12), (component_table, 8), (attention_table, 10), (gelu_table, 5), (search_table, 8))
    for table, rows in tables:
        recipes = table()
        assert len(recipes) == len({recipe.name for recipe in recipes.values()}) == rows


@pytest.mark.parametrize("name", ["repq-vit", "adalog"])
def test_swin_becomes_a_program(name: str, small_images: np.ndarray) -> None:
    graph = swin_transformer_graph(small_swin(), "swin", mean=(0.5,) * 3, std=(0.25,) * 3)
    assert "layers.1.downsample.norm" in reparameterizable(graph)
    calibration = calibrate(graph, small_images, PROGRAMS[name])
    program = lower(calibration)
    fast, slow = (Executor(program, backend).run(small_images[:1], keep=None)[1] for backend in ("numba", "reference"))
    assert all(np.array_equal(fast[node], array) for node, array in slow.items())
    result = audit(calibration, program, small_images)
    assert max(point.local.mean for point in result.points) < 0.03
    # Random weights: the logits of several classes lie close together.
    assert result.same_prediction > 0.7


@pytest.mark.parametrize("swin", [False, True], ids=["vit", "swin"])
@pytest.mark.parametrize(
    ("table", "row", "recipe"),
    [
        ("adalog-components", "uniform, alternating 4/4/4", "adalog 4/4/4 gelu uniform alternating"),
        ("adalog-attention", "log2 4/4/3", "adalog 4/4/3 attention log2"),
        ("adalog-gelu", "log-sqrt2 4/4/4", "adalog 4/4/4 gelu log-sqrt2"),
    ],
)
def test_table_commands(
    table: str, row: str, recipe: str, swin: bool, small_graph: FloatGraph, small_images: np.ndarray,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A row of each on a network that takes seconds, by a search that tries little."""
    graph = small_graph
    if swin:
        graph = swin_transformer_graph(small_swin(), "small", mean=(0.5,) * 3, std=(0.25,) * 3)
    labels = predict(Interpreter(graph), small_images).argmax(axis=1)
    images = ImageSet(small_images, labels)
    monkeypatch.setattr("hwsim.cli.table.calibration_source", lambda *options: (graph, images))
    monkeypatch.setattr("hwsim.cli.table.evaluation_images", lambda *options: images)
    rows = {label: quick(whole) for label, whole in TABLES[table](8).items()}
    monkeypatch.setitem(TABLES, table, lambda batch: rows)
    main(["table", table, "--rows", row, "-o", str(tmp_path)])
    assert row in capsys.readouterr().out
    (found,) = csv.DictReader((tmp_path / f"{table}-small.csv").read_text().splitlines())
    assert (found["label"], found["recipe"], found["images"]) == (row, recipe, "24")
    assert float(found["float_top1"]) == 100 and int(found["tried"]) > 1000
    for top1 in ("fake_quant_top1", "integer_top1"):
        assert 40 <= float(found[top1]) <= 100
