"""PTQ4ViT: the search against a plain one, its corrections, its program, and what it refuses."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from conftest import small_model
from golden.errors import HwsimError
from golden.published import twin_gelu, twin_softmax
from hwsim.audit import audit
from hwsim.execute import Executor
from hwsim.networks.embedded import load_calibration_set
from hwsim.networks.graph import FloatGraph
from hwsim.networks.interpret import Interpreter
from hwsim.networks.load import load_network
from hwsim.networks.vision_transformer import vision_transformer_graph
from hwsim.program import save_program
from hwsim.quantize.calibrate import Calibration, calibrate
from hwsim.quantize.lowering import lower
from hwsim.quantize.ptq4vit import base_ptq, ptq4vit, ptq4vit_table
from hwsim.quantize.quantizers.twin import ReleasedTwinSoftmaxGrid, TwinGelu, TwinGeluGrid, TwinSoftmax, TwinSoftmaxGrid
from hwsim.quantize.quantizers.uniform import HeadGrid, Uniform, UniformGrid
from hwsim.quantize.recipe import Recipe
from hwsim.quantize.search.record import Record, divergence_loss, drawn_class_loss, record
from hwsim.quantize.search.run import searched_nodes
from hwsim.quantize.search.settings import ScaleSearch
from hwsim.quantize.weights import SymmetricWeights


@pytest.fixture(scope="module")
def searched(small_graph: FloatGraph, small_images: np.ndarray) -> Calibration:
    return calibrate(small_graph, small_images, ptq4vit("6/6/6"))


def few_candidates(recipe: Recipe, **changes: object) -> Recipe:
    assert recipe.search is not None
    return dataclasses.replace(recipe, search=dataclasses.replace(recipe.search, candidates=8, **changes))  # type: ignore[arg-type]


def float_values(graph: FloatGraph, images: np.ndarray) -> dict[str, np.ndarray]:
    values: dict[str, np.ndarray] = {}

    def keep(node, value):  # type: ignore[no-untyped-def]
        values[node.name] = value.numpy().astype(np.float64)
        return value

    Interpreter(graph).run(images, after=keep)
    return values


def symmetric(x: np.ndarray, scale: np.ndarray | float, bits: int) -> np.ndarray:
    half = 1 << (bits - 1)
    result: np.ndarray = np.clip(np.rint(x / scale), -half, half - 1) * scale
    return result


@pytest.mark.parametrize("metric", ["mse", "cosine"])
def test_linear_scales_are_those_of_a_plain_search(
    small_graph: FloatGraph, small_images: np.ndarray, metric: str
) -> None:
    """One round over the joint projection, in NumPy and float64: weights by thirds first, then the input."""
    recipe = few_candidates(ptq4vit("4/4/4", metric=metric), rounds=1)
    assert isinstance(recipe.search, ScaleSearch)
    calibration = calibrate(small_graph, small_images, recipe)
    values = float_values(small_graph, small_images)
    node = small_graph["blocks.0.attn.qkv"]
    x, expected = values["blocks.0.norm1"], values[node.name]
    weight, bias = (node.parameters[name].astype(np.float64) for name in ("weight", "bias"))
    thirds = np.split(np.arange(len(weight)), 3)
    first_x = np.abs(x).max() / 7.5
    first_w = np.array([np.abs(weight[rows]).max() / 7.5 for rows in thirds])

    def score(output: np.ndarray, wanted: np.ndarray) -> float:
        if metric == "mse":
            return -float(((output - wanted) ** 2).mean(axis=(1, 2)).sum())
        cosine = (output * wanted).sum(-1) / np.linalg.norm(output, axis=-1) / np.linalg.norm(wanted, axis=-1)
        return float(cosine.mean(axis=1).sum())

    quantized_x = symmetric(x, first_x, 4)
    chosen = np.zeros(len(weight))
    for rows, first in zip(thirds, first_w, strict=True):
        scores = []
        for factor in recipe.search.factors:
            output = quantized_x @ symmetric(weight[rows], first * factor, 4).T + bias[rows]
            scores.append(score(output, expected[..., rows]))
        chosen[rows] = first * recipe.search.factors[int(np.argmax(scores))]
    np.testing.assert_allclose(calibration.weights[node.name].scale, chosen, rtol=1e-6)

    quantized_w = symmetric(weight, chosen[:, None], 4)
    scores = [score(symmetric(x, first_x * f, 4) @ quantized_w.T + bias, expected) for f in recipe.search.factors]
    grid = calibration.grids["blocks.0.norm1"]
    assert isinstance(grid, UniformGrid)
    assert grid.scale == pytest.approx(first_x * recipe.search.factors[int(np.argmax(scores))], rel=1e-6)


def test_split_is_searched_with_quantized_values(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """First turn of attention times values, in NumPy."""
    values = float_values(small_graph, small_images)
    attention, value = values["blocks.1.attn.softmax"], values["blocks.1.attn.v"]
    half = 4
    step = np.abs(value).max(axis=(0, 2, 3), keepdims=True) / (half - 0.5)
    errors = []
    for shift in range(20):
        fine = np.clip(np.rint(attention * half * 2**shift), 0, half - 1) / half / 2**shift
        coarse = np.clip(np.rint(attention * half), 0, half - 1) / half
        twin = np.where(attention < 2.0**-shift, fine, coarse)
        errors.append(((twin @ symmetric(value, step, 3) - values["blocks.1.attn.context"]) ** 2).sum())
    calibration = calibrate(small_graph, small_images, few_candidates(ptq4vit("3/3/3", metric="mse"), rounds=1))
    grid = calibration.grids["blocks.1.attn.softmax"]
    assert isinstance(grid, TwinSoftmaxGrid)
    assert grid.shift == int(np.argmin(errors))


@pytest.fixture(scope="module")
def sharp_graph() -> FloatGraph:
    """The small network with larger scores: rows of its attention have a few large entries, as trained ones do."""
    model = small_model()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[:48] *= 2.5
    return vision_transformer_graph(model, "sharp", mean=(0.52, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def test_released_split_is_searched_with_values_in_float(sharp_graph: FloatGraph, small_images: np.ndarray) -> None:
    """Quantized values would make another one best."""
    images = small_images[:8]
    values = float_values(sharp_graph, images)
    attention, value = values["blocks.1.attn.softmax"], values["blocks.1.attn.v"]
    step = np.abs(value).max(axis=(0, 2, 3), keepdims=True) / 1.5
    best = {}
    for name, used in (("float", value), ("quantized", symmetric(value, step, 2))):
        errors = []
        for split in range(20):
            twin = twin_softmax(attention.ravel(), 4, split, as_released=True).reshape(attention.shape)
            errors.append(((twin @ used - values["blocks.1.attn.context"]) ** 2).sum())
        best[name] = int(np.argmin(errors))
    assert best["float"] != best["quantized"]
    recipe = few_candidates(ptq4vit("2/2/4", metric="mse", as_released=True), rounds=1)
    grid = calibrate(sharp_graph, images, recipe).grids["blocks.1.attn.softmax"]
    assert isinstance(grid, ReleasedTwinSoftmaxGrid)
    assert grid.shift == best["float"]


def test_released_step_behind_gelu_is_free(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """A multiple of the first step, as a plain search of the second linear layer finds it; no power of two."""
    recipe = few_candidates(ptq4vit("4/4/4", metric="mse", as_released=True), rounds=1)
    assert isinstance(recipe.search, ScaleSearch)
    calibration = calibrate(small_graph, small_images, recipe)
    values = float_values(small_graph, small_images)
    for block in range(2):
        node = small_graph[f"blocks.{block}.mlp.fc2"]
        x, expected = values[f"blocks.{block}.mlp.gelu"], values[node.name]
        weight, bias = (node.parameters[name].astype(np.float64) for name in ("weight", "bias"))
        first_x, first_w = x.max() / 7.5, np.abs(weight).max() / 7.5

        def twin(step: float, x: np.ndarray = x) -> np.ndarray:
            return twin_gelu(x.ravel(), 4, step).reshape(x.shape)

        def best(outputs: list[np.ndarray], expected: np.ndarray = expected) -> float:
            assert isinstance(recipe.search, ScaleSearch)
            return recipe.search.factors[int(np.argmin([((output - expected) ** 2).sum() for output in outputs]))]

        factors = recipe.search.factors
        chosen_w = first_w * best([twin(first_x) @ symmetric(weight, first_w * f, 4).T + bias for f in factors])
        quantized = symmetric(weight, chosen_w, 4).T
        chosen_x = first_x * best([twin(first_x * f) @ quantized + bias for f in factors])
        grid = calibration.grids[f"blocks.{block}.mlp.gelu"]
        assert isinstance(grid, TwinGeluGrid)
        assert grid.positive == pytest.approx(chosen_x, rel=1e-6)
        assert calibration.weights[node.name].scale == pytest.approx(chosen_w, rel=1e-6)
        assert np.frexp(grid.positive / grid.negative)[0] != 0.5
        with pytest.raises(HwsimError, match="do not differ by a power of two"):
            _ = grid.shift


@pytest.mark.parametrize("as_released", [False, True])
def test_baseline_attention_has_a_step_a_head_as_released(
    as_released: bool, sharp_graph: FloatGraph, small_images: np.ndarray
) -> None:
    """In NumPy: attention first, with quantized values; without --as-released one step for all heads."""
    images = small_images[:8]
    recipe = few_candidates(base_ptq("4/4/4", metric="mse", as_released=as_released))
    assert isinstance(recipe.search, ScaleSearch)
    values = float_values(sharp_graph, images)
    attention, value = values["blocks.0.attn.softmax"], values["blocks.0.attn.v"]
    step = np.abs(value).max(axis=(0, 2, 3), keepdims=True) / 7.5
    first = np.abs(attention).max(axis=(0, 2, 3) if as_released else None, keepdims=True) / 7.5
    errors = []
    for factor in recipe.search.factors:
        output = symmetric(attention, first * factor, 4) @ symmetric(value, step, 4)
        squares = ((output - values["blocks.0.attn.context"]) ** 2).sum(axis=(0, 2, 3))
        errors.append(squares if as_released else squares.sum(keepdims=True))
    expected = first.ravel() * np.array(recipe.search.factors)[np.argmin(errors, axis=0)]
    grid = calibrate(sharp_graph, images, recipe).grids["blocks.0.attn.softmax"]
    assert isinstance(grid, HeadGrid if as_released else UniformGrid)
    np.testing.assert_allclose(np.ravel(grid.scale), expected, rtol=1e-6)
    assert len(set(expected)) == (2 if as_released else 1)


def test_gradients_carry_signal_where_the_released_ones_are_noise(
    small_graph: FloatGraph, small_images: np.ndarray
) -> None:
    interpreter = Interpreter(small_graph)
    logits = interpreter.run(small_images).numpy()
    nodes = searched_nodes(small_graph)
    drawn = record(interpreter, small_images, nodes, drawn_class_loss(logits, 0))
    released = record(interpreter, small_images, nodes, divergence_loss(logits))
    for node in nodes:
        signal, noise = (r[node.name].gradient for r in (drawn, released))
        assert signal is not None
        assert noise is not None
        assert signal.abs().max() > 1e-3, node.name
        assert noise.abs().max() < 1e-5, node.name


@pytest.mark.parametrize("as_released", [False, True])
def test_search_takes_the_gradients_of_its_kind(
    as_released: bool, small_graph: FloatGraph, small_images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest: list[float] = []

    def watched(*arguments: Any, **options: Any) -> dict[str, Record]:
        found = record(*arguments, **options)
        largest.extend(float(r.gradient.abs().max()) for r in found.values() if r.gradient is not None)
        return found

    monkeypatch.setattr("hwsim.quantize.search.run.record", watched)
    recipe = ptq4vit("6/6/6", as_released=as_released, rounds=1)
    recipe = dataclasses.replace(recipe, search=dataclasses.replace(recipe.search, candidates=1))  # type: ignore[type-var]
    calibrate(small_graph, small_images[:8], recipe)
    assert len(largest) == len(searched_nodes(small_graph))
    assert max(largest) < 1e-5 if as_released else min(largest) > 1e-3


def test_drawn_classes_follow_the_predictions() -> None:
    """Of many draws each class gets its predicted share: the gradient by the logits is p minus the drawn class."""
    logits = np.log(np.array([[0.7, 0.2, 0.1]], np.float32)).repeat(20_000, axis=0)
    leaf = torch.from_numpy(logits).requires_grad_()
    (gradient,) = torch.autograd.grad(drawn_class_loss(logits, 3)(leaf, slice(None)), leaf)
    shares = (torch.tensor([0.7, 0.2, 0.1]) - gradient).mean(dim=0)
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.2, 0.1]), atol=0.01, rtol=0)
    # Fisher information of the logits is diag(p) - p p'; its diagonal is the mean squared gradient.
    torch.testing.assert_close(gradient.square().mean(dim=0), torch.tensor([0.21, 0.16, 0.09]), atol=0.005, rtol=0)


def test_program_follows_fake_quant(searched: Calibration, small_images: np.ndarray) -> None:
    program = lower(searched)
    fast, slow = (Executor(program, name).run(small_images[:2], keep=None)[1] for name in ("numba", "reference"))
    for name, array in slow.items():
        assert np.array_equal(fast[name], array), name
    result = audit(searched, program, small_images)
    assert {"twin_quantize", "twin_matmul", "layernorm", "lookup"} <= {point.unit for point in result.points}
    for point in result.points:
        assert point.local.mean < 0.1, point
        if point.unit in ("twin_matmul", "split_heads", "lookup", "layernorm"):
            assert point.local.largest <= 1, point
    assert result.same_prediction > 0.9


def test_swin_becomes_a_program(small_images: np.ndarray) -> None:
    """The shipped Swin on a few of its images: windows, bias, mask and merging between twin codes."""
    graph = load_network("embedded-swin")
    images = load_calibration_set().images[:24]
    recipe = few_candidates(ptq4vit("8/8/8"), rounds=1)
    calibration = calibrate(graph, images[:8], recipe)
    program = lower(calibration)
    assert {"twin_quantize", "twin_matmul", "twin_linear", "shift_mask", "window_bias", "merge_patches"} <= {
        node.spec.kind for node in program.nodes
    }
    fast, slow = (Executor(program, name).run(images[8:10], keep=None)[1] for name in ("numba", "reference"))
    for name, array in slow.items():
        assert np.array_equal(fast[name], array), name
    result = audit(calibration, program, images[8:])
    for point in result.points:
        assert point.local.mean < 0.1, point
    assert result.same_prediction > 0.9


def test_baseline_becomes_a_program(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    calibration = calibrate(small_graph, small_images, few_candidates(base_ptq("8/8/8")))
    assert audit(calibration, lower(calibration), small_images).same_prediction > 0.8


def test_steps_behind_gelu_differ_by_a_power_of_two(searched: Calibration) -> None:
    grids = [grid for grid in searched.grids.values() if isinstance(grid, TwinGeluGrid)]
    assert len(grids) == 2
    for grid in grids:
        assert np.log2(grid.positive / grid.negative) == grid.shift
    assert all(isinstance(searched.grids[f"blocks.0.attn.{name}"], HeadGrid) for name in "qkv")


def test_released_behaviour_has_no_program(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    recipe = few_candidates(ptq4vit("6/6/6", as_released=True), rounds=1)
    calibration = calibrate(small_graph, small_images[:8], recipe)
    with pytest.raises(HwsimError, match="calibrate without --as-released"):
        lower(calibration)


def test_same_seed_same_program(small_graph: FloatGraph, small_images: np.ndarray, tmp_path) -> None:  # type: ignore[no-untyped-def]
    for mode, number in itertools.product(("parallel", "sequential"), range(2)):
        recipe = few_candidates(ptq4vit("4/4/4", mode=mode), rounds=1)
        save_program(lower(calibrate(small_graph, small_images[:8], recipe)), tmp_path / f"{mode}{number}")
    parallel, sequential = (
        [(tmp_path / f"{mode}{i}").read_bytes() for i in range(2)] for mode in ("parallel", "sequential")
    )
    assert parallel[0] == parallel[1]
    assert sequential[0] == sequential[1]
    assert parallel[0] != sequential[0]


def changed(graph: FloatGraph, name: str, **parameters: np.ndarray) -> FloatGraph:
    nodes = tuple(
        dataclasses.replace(node, parameters={**node.parameters, **parameters}) if node.name == name else node
        for node in graph.nodes
    )
    return dataclasses.replace(graph, nodes=nodes)


@pytest.mark.filterwarnings("ignore:.* everywhere in the last calibration batch")
def test_zero_weights_are_refused(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    weight = small_graph["blocks.1.attn.qkv"].parameters["weight"].copy()
    weight[24:48] = 0
    graph = changed(small_graph, "blocks.1.attn.qkv", weight=weight)
    with pytest.raises(HwsimError, match=r"group 2 of 3 of blocks\.1\.attn\.qkv are zero"):
        calibrate(graph, small_images, ptq4vit("8/8/8"))


def test_dead_activation_keeps_its_first_step(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """A layer without output: its point is constant, and nothing can tell scales in front of it apart."""
    bias = np.full_like(small_graph["blocks.0.mlp.fc1"].parameters["bias"], -1e4)
    graph = changed(small_graph, "blocks.0.mlp.fc1", bias=bias)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        calibration = calibrate(graph, small_images[:8], few_candidates(ptq4vit("8/8/8"), rounds=1))
    messages = [str(warning.message) for warning in caught]
    assert any("blocks.0.mlp.gelu: it is zero on all calibration images" in message for message in messages)
    assert any("blocks.0.mlp.fc1: the gradient at its output is zero" in message for message in messages)
    program = lower(calibration)
    assert Executor(program).run(small_images[:2])[0].shape == (2, 7)


def test_dead_head_keeps_its_first_step(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    parameters = {name: array.copy() for name, array in small_graph["blocks.0.attn.qkv"].parameters.items()}
    for array in parameters.values():
        array[12:24] = 0  # second head of the queries
    graph = changed(small_graph, "blocks.0.attn.qkv", **parameters)
    with pytest.warns(UserWarning, match=r"blocks\.0\.attn\.q: heads \[1\] are zero"):
        calibration = calibrate(graph, small_images[:8], few_candidates(ptq4vit("8/8/8"), rounds=1))
    grid = calibration.grids["blocks.0.attn.q"]
    assert isinstance(grid, HeadGrid)
    assert grid.scale[1] == np.float32(torch.finfo(torch.float32).eps)


@pytest.mark.filterwarnings("ignore:.* everywhere in the last calibration batch")
def test_gradient_that_is_not_finite_is_refused(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    graph = changed(
        small_graph,
        "blocks.1.mlp.fc1",
        bias=np.full_like(small_graph["blocks.1.mlp.fc1"].parameters["bias"], -1e4),
    )
    weight = np.full_like(graph["blocks.1.mlp.fc2"].parameters["weight"], 3e38)
    weight[::2] *= -1
    graph = changed(graph, "blocks.1.mlp.fc2", weight=weight)
    with pytest.raises(HwsimError, match=r"the gradient at the output of .* is not finite"):
        calibrate(graph, small_images[:8], ptq4vit("8/8/8"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metric": "l3"}, "metric must be one of"),
        ({"mode": "random"}, "mode must be one of"),
        ({"rounds": 0}, "at least one round"),
        ({"alpha": 0.0}, "0 < alpha < beta"),
    ],
)
def test_settings_are_checked(values: dict[str, object], message: str) -> None:
    with pytest.raises(HwsimError, match=message):
        ScaleSearch(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("as_released", [False, True])
def test_table_has_every_part_on_and_off(as_released: bool) -> None:
    """What a label says: metric, rounds and first factor of the search, quantizers behind softmax and GELU."""
    parts = {
        "BasePTQ": ("cosine", 1, 0.5, False, False),
        "Hessian": ("hessian", 3, 0.01, False, False),
        "Hessian, softmax twin": ("hessian", 3, 0.01, True, False),
        "Hessian, GELU twin": ("hessian", 3, 0.01, False, True),
        "softmax twin, GELU twin": ("cosine", 3, 0.01, True, True),
        "PTQ4ViT": ("hessian", 3, 0.01, True, True),
    }
    rows = ptq4vit_table(16, as_released=as_released)
    assert list(rows) == [f"{label} {width}/{width}/{width}" for width in (8, 6, 4) for label in parts]
    assert len({recipe.name for recipe in rows.values()}) == 18
    for width, (label, (metric, rounds, alpha, softmax, gelu)) in itertools.product((8, 6, 4), parts.items()):
        recipe = rows[f"{label} {width}/{width}/{width}"]
        assert recipe.search == ScaleSearch(metric, rounds=rounds, alpha=alpha, as_released=as_released)
        attention = Uniform(width, symmetric=True, heads=as_released)
        assert recipe.points["attention"] == (TwinSoftmax(width, as_released) if softmax else attention)
        uniform = Uniform(width, symmetric=True)
        assert recipe.points["gelu"] == (TwinGelu(width, power_of_two=not as_released) if gelu else uniform)
        assert recipe.points["norm"] == uniform
        assert recipe.weights == SymmetricWeights(width, groups=1)
        assert recipe.calibration_batch == 16
