"""Q-ViT's program side: where the IRM stands, what it computes in floats and in integers, and the widths around it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import small_distilled, small_swin
from golden.errors import HwsimError
from golden.layernorm import LayerNormSpec
from golden.linear import LinearSpec
from golden.requantize import RequantizeSpec
from golden.spec import IntFormat
from hwsim.audit import audit
from hwsim.cli import main
from hwsim.cli.source import make_recipe
from hwsim.execute import Executor
from hwsim.networks.graph import MOVEMENTS, FloatGraph, FloatNode
from hwsim.networks.interpret import Interpreter
from hwsim.networks.load import float_graph
from hwsim.program import Program, save_program
from hwsim.qat.export import calibration_of
from hwsim.qat.network import QuantizedNetwork
from hwsim.qat.start import first_grids
from hwsim.quantize.calibrate import Calibration, calibrate
from hwsim.quantize.fake_quant import FakeQuantNetwork
from hwsim.quantize.lowering import lower
from hwsim.quantize.lowering.projections import split_projections
from hwsim.quantize.q_vit import IRM_EPS, fit_irm, insert_irm, irm_nodes, q_vit
from hwsim.quantize.quantizers.uniform import UniformGrid
from hwsim.quantize.recipe import Lowering

pytest.importorskip("timm")
MEAN_STD: dict[str, tuple[float, ...]] = {"mean": (0.52, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
NETWORKS = ("vit", "distilled", "swin")
Q, K, V = (f"blocks.1.attn.{part}" for part in ("q", "k", "v"))


@pytest.fixture(scope="module")
def graphs(small_graph: FloatGraph) -> dict[str, FloatGraph]:
    others = {"distilled": small_distilled(), "swin": small_swin()}
    return {"vit": small_graph} | {name: float_graph(model, name, **MEAN_STD) for name, model in others.items()}


@pytest.fixture(scope="module")
def two_bits(small_graph: FloatGraph, small_images: np.ndarray) -> tuple[Calibration, Program]:
    calibration = calibrate(small_graph, small_images, q_vit("2/2/2"))
    return calibration, lower(calibration)


def values_of(graph: FloatGraph, images: np.ndarray, *names: str) -> list[np.ndarray]:
    """Float values of some nodes."""
    seen: dict[str, np.ndarray] = {}

    def after(node: FloatNode, value: torch.Tensor) -> torch.Tensor:
        seen[node.name] = value.numpy().copy()
        return value

    Interpreter(graph).run(images, after=after)
    return [seen[name] for name in names]


# --- the float graph ---


@pytest.mark.parametrize("name", NETWORKS)
def test_every_block_rectifies_its_queries_and_keys(name: str, graphs: dict[str, FloatGraph]) -> None:
    graph = graphs[name]
    rectified = insert_irm(graph)
    blocks = sum(node.role == "scores" for node in graph.nodes)
    assert len(irm_nodes(rectified)) == 2 * blocks == 2 * (4 if name == "swin" else 2)
    for scores in (node for node in rectified.nodes if node.role == "scores"):
        query, key = rectified[scores.inputs[0]], rectified[rectified[scores.inputs[1]].inputs[0]]
        for norm, role, part in ((query, "query", 0), (key, "key", 1)):
            split = rectified[norm.inputs[0]]
            assert (norm.operation, norm.role, norm.name) == ("layernorm", role, f"{split.name}_norm")
            assert (split.operation, split.role, split.attributes["part"]) == ("split_heads", "", part)
            assert norm.parameters["weight"].shape == norm.parameters["bias"].shape == rectified.shapes[split.name][-1:]
    assert {node.name for node in graph.nodes} <= {node.name for node in rectified.nodes}
    assert insert_irm(rectified) is rectified
    assert rectified.shapes.items() >= graph.shapes.items()


def test_irm_is_a_normalisation_over_the_channels_of_a_head(
    graphs: dict[str, FloatGraph], small_images: np.ndarray
) -> None:
    rectified = insert_irm(graphs["vit"])
    gamma, beta = np.linspace(0.5, 2, 12, dtype=np.float32), np.linspace(-1, 1, 12, dtype=np.float32)
    nodes = [
        replace(node, parameters={"weight": gamma, "bias": beta}) if node.name == f"{Q}_norm" else node
        for node in rectified.nodes
    ]
    before, after = values_of(replace(rectified, nodes=tuple(nodes)), small_images[:2], Q, f"{Q}_norm")
    assert before.shape == (2, 2, 17, 12)  # images, heads, tokens, channels of a head
    row, got = [float(x) for x in before[1, 1, 5]], after[1, 1, 5]
    mean = math.fsum(row) / 12
    sigma = math.sqrt(math.fsum((x - mean) ** 2 for x in row) / 12 + IRM_EPS)
    expected = [float(g) * (x - mean) / sigma + float(b) for g, b, x in zip(gamma, beta, row, strict=True)]
    assert np.allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_fitted_irm_is_the_least_squares_one(graphs: dict[str, FloatGraph], small_images: np.ndarray) -> None:
    graph = graphs["vit"]
    fitted = fit_irm(graph, small_images, batch=10)
    (queries,) = values_of(graph, small_images, Q)
    deviation = queries - queries.mean(axis=-1, keepdims=True)
    normal = deviation / np.sqrt((deviation**2).mean(axis=-1, keepdims=True) + IRM_EPS)
    for channel in range(12):
        x, y = normal[..., channel].ravel(), queries[..., channel].ravel()
        (gamma, beta), *_ = np.linalg.lstsq(np.stack([x, np.ones_like(x)], axis=1), y)
        found = fitted[f"{Q}_norm"].parameters
        assert found["weight"][channel] == pytest.approx(gamma, rel=1e-3)
        assert found["bias"][channel] == pytest.approx(beta, rel=1e-3, abs=1e-4)
    assert fit_irm(fitted, small_images) is fitted


def test_fitted_irm_of_constant_channels(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """Queries that are the same for every token: gamma 1, and a beta with which the IRM gives them back."""
    joint = "blocks.1.attn.qkv"
    parameters = {name: array.copy() for name, array in small_graph[joint].parameters.items()}
    parameters["weight"][:24] = 0
    parameters["bias"][12:24] = parameters["bias"][:12]  # the same in both heads, which share gamma and beta
    nodes = (replace(node, parameters=parameters) if node.name == joint else node for node in small_graph.nodes)
    fitted = fit_irm(replace(small_graph, nodes=tuple(nodes)), small_images)
    found = fitted[f"{Q}_norm"].parameters
    np.testing.assert_array_equal(found["weight"], np.ones(12))
    (rectified,) = values_of(fitted, small_images[:4], f"{Q}_norm")
    np.testing.assert_allclose(rectified, np.broadcast_to(parameters["bias"][:12], rectified.shape), atol=1e-5)


# --- the recipe ---


def test_widths_of_the_recipe(graphs: dict[str, FloatGraph]) -> None:
    recipe = q_vit("3/4/2")
    bits = {role: quantizer.bits for role, quantizer in recipe.points.items()}  # type: ignore[attr-defined]
    operands = dict.fromkeys(("norm", "query", "key", "value", "context", "gelu"), 4)
    assert bits == {**operands, "attention": 2, "input": 8, "feature": 8}
    for name, graph in graphs.items():
        widths = {node.name: recipe.weights_for(node).bits for node in graph.nodes if node.operation == "linear"}
        edges = {"patch_embed.proj", "head.fc" if name == "swin" else "head"}
        assert {layer: width for layer, width in widths.items() if width == 8} == dict.fromkeys(edges, 8)
        assert set(widths.values()) == {3, 8}
        # Every operand of a product has codes, and nothing else: not what goes into a residual sum or a mean.
        rectified = insert_irm(graph)
        for node in rectified.nodes:
            if node.operation in ("linear", "matmul", "add", "token_mean"):
                for operand in map(rectified.__getitem__, node.inputs):
                    while recipe.at(operand) is None and operand.operation in MOVEMENTS:
                        operand = rectified[operand.inputs[0]]
                    quantized = node.operation in ("linear", "matmul")
                    assert (recipe.at(operand) is not None) == quantized, (name, node.name, operand.name)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipe": "fq-vit", "irm": True}, "recipe fq-vit has no irm"),
        ({"recipe": "q-vit", "bits": "1/4/4"}, "weights must have between 2 and 8 bits"),
        ({"recipe": "q-vit", "range": "median"}, "no range observer 'median'"),
        ({"recipe": "q-vit", "lowering": ("irm_bits=x",)}, "irm_bits must be an integer"),
        ({"recipe": "q-vit", "lowering": ("irm_bits=17",)}, "irm_bits must be an integer between 2 and 16, not 17"),
        ({"recipe": "q-vit", "lowering": ("bias_fraction_bits=-1",)}, "bias_fraction_bits must be .* 16, not -1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(HwsimError, match=said):
        make_recipe(**options)


# --- the integer program ---


@pytest.mark.parametrize(("name", "bits", "irm"), [
    ("vit", "4/4/4", True), ("vit", "3/3/3", True), ("vit", "2/2/2", True), ("vit", "4/4/4", False),
    ("distilled", "2/2/2", True), ("swin", "4/4/4", True), ("swin", "2/2/2", True), ("swin", "3/3/3", False),
])  # fmt: skip
def test_program_follows_fake_quant(
    name: str, bits: str, irm: bool, graphs: dict[str, FloatGraph], small_images: np.ndarray
) -> None:
    calibration = calibrate(graphs[name], small_images, q_vit(bits, irm=irm))
    program = lower(calibration)
    assert len(irm_nodes(calibration.graph)) == (0 if not irm else 8 if name == "swin" else 4)
    points = audit(calibration, program, small_images).points
    assert {point.point for point in points} == set(calibration.grids)
    for point in points:
        assert point.local.largest <= 1, point
        # A LayerNorm's mantissa of 12 bits is half a percent of a step of 4 bits, and a tenth of one of 8.
        assert point.local.share_equal > (0.9 if calibration.grids[point.point].bits == 8 else 0.98), point
    _, fast = Executor(program).run(small_images[:3], keep=None)
    _, slow = Executor(program, "reference").run(small_images[:3], keep=None)
    assert all(np.array_equal(fast[node], slow[node]) for node in slow)


def test_irm_unit_is_a_layernorm_of_a_head(two_bits: tuple[Calibration, Program], small_images: np.ndarray) -> None:
    """Against LayerNorm in exact fractions of the real values that the unit's input codes stand for."""
    calibration, program = two_bits
    for split, role in ((Q, "query"), (K, "key")):
        node = program[f"{split}_norm"]
        spec = node.spec
        assert isinstance(spec, LayerNormSpec)
        assert (spec.channels, spec.input_bits, spec.output_bits) == (12, 12, 2)
        assert calibration.graph[node.name].role == role
        _, kept = Executor(program).run(small_images[:2], keep=[split, node.name])
        incoming = program.header["scales"][f"blocks.1.attn.qkv.{split[-1]}"]
        outgoing = calibration.grids[node.name]
        assert isinstance(outgoing, UniformGrid)
        gamma, beta = (calibration.graph[node.name].parameters[key].astype(float) for key in ("weight", "bias"))
        rows, got = kept[split].reshape(-1, 12), kept[node.name].reshape(-1, 12)
        wrong = 0
        for codes, found in zip(rows, got, strict=True):
            x = [(int(code) - incoming["zero_point"]) * Fraction(incoming["scale"]) for code in codes]
            mean = sum(x) / 12
            sigma = math.sqrt(sum((value - mean) ** 2 for value in x) / 12)
            y = [g * float(value - mean) / sigma + b for g, b, value in zip(gamma, beta, x, strict=True)]
            expected = [min(max(round(value / outgoing.scale + outgoing.zero_point), 0), 3) for value in y]
            assert max(abs(int(a) - b) for a, b in zip(found, expected, strict=True)) <= 1
            wrong += sum(int(a) != b for a, b in zip(found, expected, strict=True))
        assert wrong <= 0.005 * rows.size
        assert len(np.unique(got)) == 4


def test_one_wrong_bit_of_gamma_shows(two_bits: tuple[Calibration, Program], small_images: np.ndarray) -> None:
    _, program = two_bits
    node = program[f"{Q}_norm"]
    gamma = node.constants["gamma"].copy()
    gamma[3] ^= 1 << 8
    nodes = tuple(
        replace(each, constants={**each.constants, "gamma": gamma}) if each is node else each for each in program.nodes
    )
    codes = [
        Executor(each).run(small_images, keep=[node.name])[1][node.name]
        for each in (program, Program(nodes, program.image_size, program.header))
    ]
    differs = (codes[0] != codes[1]).any(axis=(0, 1, 2))
    assert differs[3]
    assert not np.delete(differs, 3).any()


def test_width_in_front_of_the_irm(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    shares = {}
    for bits in (6, 8, 12):
        calibration = calibrate(small_graph, small_images, q_vit(lowering=Lowering(irm_bits=bits)))
        program = lower(calibration)
        assert program[f"{Q}_norm"].spec.input_bits == bits  # type: ignore[attr-defined]
        assert program[f"{V}"].spec.bits == 4  # type: ignore[attr-defined]
        points = {point.point: point for point in audit(calibration, program, small_images).points}
        shares[bits] = points[f"{Q}_norm"].local.share_equal
    assert shares[6] < shares[8] < shares[12]


# --- joint projections in parts ---


def test_parts_of_a_projection_are_the_same_network(
    two_bits: tuple[Calibration, Program], small_images: np.ndarray
) -> None:
    whole = two_bits[0]
    parts = split_projections(whole)
    names = {node.name for node in parts.graph.nodes}
    assert {f"blocks.1.attn.qkv.{part}" for part in "qkv"} <= names
    assert "blocks.1.attn.qkv" not in names
    assert parts.weights.keys() == {node.name for node in parts.graph.nodes if node.operation == "linear"}
    codes: list[dict[str, np.ndarray]] = [{}, {}]
    logits = [FakeQuantNetwork(each).run(small_images, seen) for each, seen in zip((whole, parts), codes, strict=True)]
    assert np.array_equal(logits[0], logits[1])
    assert codes[0].keys() == codes[1].keys()
    assert all(np.array_equal(codes[0][name], codes[1][name]) for name in codes[0])


def test_large_values_waste_no_codes_of_queries_and_keys(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """The codes in front of the IRM span twice what the calibration images showed of the part, whatever the values."""
    joint = "blocks.1.attn.qkv"
    parameters = {name: array.copy() for name, array in small_graph[joint].parameters.items()}
    for array in parameters.values():
        array[48:] *= 100
    nodes = (replace(node, parameters=parameters) if node.name == joint else node for node in small_graph.nodes)
    graph = replace(small_graph, nodes=tuple(nodes))
    recipe, student = q_vit("2/2/2"), fit_irm(graph, small_images)
    start = first_grids(student, recipe, small_images, "lsq")
    trained = calibration_of(QuantizedNetwork(student, recipe, start, 8, torch.device("cpu")), small_images)
    seen: dict[str, np.ndarray] = {}
    FakeQuantNetwork(trained).run(small_images, observe=lambda node, x: seen.update({node.name: x.numpy().copy()}))
    observed = [seen[Q], seen[K]], values_of(student, small_images, Q, K)
    for calibration, parts in zip((trained, calibrate(graph, small_images, recipe)), observed, strict=True):
        scales = lower(calibration).header["scales"]
        for name, values in zip((Q, K), parts, strict=True):
            scale = scales[f"{joint}.{name[-1]}"]["scale"]
            assert scale == pytest.approx(2 * float(np.ptp(values)) / 4095, rel=1e-3)


def test_joint_projection_is_carried_as_a_whole(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """Where the values stay in float too, one unit carries all parts."""
    recipe = q_vit("4/4/4")
    recipe = replace(recipe, points={role: each for role, each in recipe.points.items() if role != "value"})
    calibration = calibrate(small_graph, small_images, recipe)
    assert not split_projections(calibration).ranges.keys() & {Q, K}
    program = lower(calibration)
    assert "blocks.1.attn.qkv" in {node.name for node in program.nodes}
    for point in audit(calibration, program, small_images).points:
        assert point.local.largest <= 1, point


def test_projections_of_one_width_stay_joint(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    calibration = calibrate(small_graph, small_images, q_vit(irm=False))
    assert split_projections(calibration) is calibration
    assert "blocks.1.attn.qkv" in {node.name for node in lower(calibration).nodes}


# --- biases finer than a step of the product ---


def test_linear_with_fraction_bits_by_hand() -> None:
    spec = LinearSpec(
        input_features=2,
        output_features=1,
        input_bits=2,
        weight_bits=2,
        bias_bits=8,
        bias_fraction_bits=3,
        requantize=RequantizeSpec(
            input=IntFormat(9, signed=True), output_bits=4, multiplier_bits=4, shift_bits=6, channels=1
        ),
    )
    constants = spec.check_constants(
        {
            "weight": np.array([[1, -2]]),
            "bias": np.array([21]),
            "multiplier": np.array([1]),
            "shift": np.array([3]),
            "zero_point": np.array(4),
        }
    )
    codes = np.array([[0, 0], [3, 0], [0, 3], [2, 3], [3, 1]])
    # 21/8 = 2.625 more than the product, then half to even; the zero point is 4.
    products = [0, 3, -6, -4, 1]
    assert spec.accumulate(constants, codes)[:, 0].tolist() == [8 * product + 21 for product in products]
    expected = [round(Fraction(8 * product + 21, 8)) + 4 for product in products]
    assert spec.compute(constants, codes)[:, 0].tolist() == expected
    assert spec.bounds(constants) == (-2 * 3 * 8, 3 * 8 + 21)
    narrow = replace(spec, requantize=replace(spec.requantize, input=IntFormat(6, signed=True)))
    with pytest.raises(HwsimError, match="accumulator could overflow"):
        narrow.check_constants(constants)


def test_fraction_bits_of_the_bias_are_worth_it(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    def equal(fraction: int | None) -> float:
        lowering = Lowering(bias_fraction_bits=fraction)
        calibration = calibrate(small_graph, small_images, q_vit("2/2/2", lowering=lowering))
        program = lower(calibration)
        specs = [node.spec for node in program.nodes if isinstance(node.spec, LinearSpec)]
        found = {spec.weight_bits: spec.bias_fraction_bits for spec in specs}
        assert found == ({2: 6, 8: 0} if fraction is None else {2: fraction, 8: 0})
        points = [point.local for point in audit(calibration, program, small_images).points]
        return sum(point.equal for point in points) / sum(point.compared for point in points)

    assert 1 - equal(None) < (1 - equal(0)) / 4


def test_hardware_commands_take_the_program(
    two_bits: tuple[Calibration, Program], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "two.safetensors"
    save_program(two_bits[1], path)
    layers = ["--layer", "blocks.0", "--bench-rows", "0", "-o", str(tmp_path / "rtl")]
    main(["rtl", "layernorm", "--program", str(path), *layers])
    said = " ".join(capsys.readouterr().out.split())
    # Norms of 24 channels and IRMs of 12 need a unit each, and the user must know which is whose.
    assert "2 modules, as one cannot serve all layers:" in said
    units = (("layernorm_1", 24, ("norm1", "norm2")), ("layernorm_2", 12, ("attn.q_norm", "attn.k_norm")))
    for module, channels, parts in units:
        assert f"{module}: saturate" in said
        assert f"{module} serves {', '.join(f'blocks.0.{part}' for part in parts)}" in said
        facts = (tmp_path / "rtl" / f"{module}.md").read_text()
        assert f"| spec channels | {channels} |" in facts
        assert "| spec output_bits | 2 |" in facts
        constants = {each.name for each in (tmp_path / "rtl").glob(f"{module}.*.constants.hex")}
        assert constants == {f"{module}.blocks.0.{part}.constants.hex" for part in parts}
    main(["cost", str(path), "--layers"])
    assert "blocks.1.attn.k_norm" in capsys.readouterr().out


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
