"""Observers against their published definition, and recipes whose parts are mixed."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import small_model, small_swin
from golden.errors import HwsimError, HwsimWarning
from golden.published import observe
from hwsim.execute import Executor
from hwsim.networks.graph import FloatGraph
from hwsim.networks.swin_transformer import swin_transformer_graph
from hwsim.networks.vision_transformer import vision_transformer_graph
from hwsim.program import save_program
from hwsim.quantize.calibrate import calibrate
from hwsim.quantize.fake_quant import FakeQuantNetwork
from hwsim.quantize.lowering import lower
from hwsim.quantize.quantizers import QUANTIZERS, parse_quantizer
from hwsim.quantize.quantizers.log2 import Log2
from hwsim.quantize.quantizers.power_of_two import PowerOfTwo
from hwsim.quantize.quantizers.twin import TwinGelu, TwinSoftmax
from hwsim.quantize.quantizers.uniform import Uniform, UniformGrid
from hwsim.quantize.ranges import RANGES
from hwsim.quantize.recipe import Recipe, fq_vit
from hwsim.quantize.weights import SymmetricWeights


def batches(seed: int, size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.standard_t(3, size) + seed).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_range_is_the_published_one(name: str, seed: int) -> None:
    seen = batches(seed, 120_000)
    observer = Uniform(8, name).observer()
    for batch in seen:
        observer.update(torch.from_numpy(batch))
    grid = observer.grid(torch.from_numpy(seen[-1]))
    assert isinstance(grid, UniformGrid)
    scale, zero_point = observe(name, seen)
    assert grid.zero_point == zero_point
    assert grid.scale == pytest.approx(scale, rel=1e-6)  # float32 against float64


def test_observers_differ() -> None:
    """Otherwise the test above would not tell one from another."""
    seen = batches(1, 120_000)
    found = {observe(name, seen)[0] for name in RANGES}
    assert len(found) == 4


def test_few_values_for_a_percentile_are_warned_of_once(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """Twelve images in three batches of five at most: one warning, with points and images; none with other ranges."""
    recipe = mixed(norm=Uniform(8, "percentile"), logits=Uniform(8, "percentile"), position=Uniform(8, "percentile"))
    recipe = dataclasses.replace(recipe, calibration_batch=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        calibration = calibrate(small_graph, small_images[:12], recipe)
    assert [warning.category for warning in caught] == [HwsimWarning]
    # 17 tokens of 24 channels, and 7 classes; the position embedding is the same in every batch.
    assert str(caught[0].message) == (
        "small: at 5 of 6 points a batch has fewer than 100000 values, so that their percentiles are nearly the "
        "minimum and maximum; blocks.0.norm1 needs batches of 246 images, head of 14286"
    )
    assert calibration.images == 12
    calibrate(small_graph, small_images[:12], mixed())


def test_a_small_batch_has_its_minimum_and_maximum_as_percentiles() -> None:
    observer = Uniform(8, "percentile").observer()
    x = torch.arange(1000, dtype=torch.float32)
    observer.update(x)
    grid = observer.grid(x)
    assert isinstance(grid, UniformGrid)
    assert grid.scale == pytest.approx(999 / 255, rel=1e-4)


def test_quantizers_from_text() -> None:
    assert parse_quantizer("uniform:6,range=omse") == Uniform(6, "omse")
    assert parse_quantizer("uniform:8,symmetric=yes,heads=yes") == Uniform(8, symmetric=True, heads=True)
    assert parse_quantizer("twin-gelu:4") == TwinGelu(4)
    assert parse_quantizer("lis") == Log2()
    for text, said in {
        "unifrm:8": "there is no 'unifrm'; did you mean uniform",
        "uniform:8,rang=ema": "uniform has no field 'rang'; it has bits, range",
        "uniform:eight": "bits cannot be 'eight'",
        "uniform:8,symmetric=perhaps": "symmetric cannot be 'perhaps'",
        "uniform:8,range=median": "there is no range observer 'median'; choose one of minmax, ema",
        "uniform:17": "a uniform quantizer takes 1 to 16 bits, not 17",
        "lis:6": "Log-Int-Softmax takes 1 to 5 attention bits",
        "twin-softmax:9": "a twin quantizer takes 2 to 8 bits, not 9",
    }.items():
        with pytest.raises(HwsimError, match=said):
            parse_quantizer(text)
    assert set(QUANTIZERS) >= {"uniform", "pts", "lis", "adalog", "twin-softmax", "twin-gelu"}


def mixed(**points: object) -> Recipe:
    base = fq_vit("8/8/8", calibration_batch=8)
    kept = {role: quantizer for role, quantizer in {**base.points, **points}.items() if quantizer is not None}
    return Recipe("mixed", SymmetricWeights(8), kept, calibration_batch=8)  # type: ignore[arg-type]


MIXED: dict[str, dict[str, object]] = {
    "twin softmax, PTS LayerNorm, percentiles": {
        "attention": TwinSoftmax(8),
        "gelu": TwinGelu(8),
        "norm": Uniform(8, "percentile"),
    },
    "heads of their own behind Log-Int-Softmax": {
        "qkv": None,
        **dict.fromkeys(("query", "key", "value"), Uniform(8, symmetric=True, heads=True)),
        "attention": Log2(4),
    },
    "only operands": {
        **dict.fromkeys(("input", "patch", "embed", "position", "residual", "qkv", "scores", "projection", "mlp")),
        **dict.fromkeys(("query", "key", "value"), Uniform(8, symmetric=True, heads=True)),
        **dict.fromkeys(("norm", "context", "feature"), Uniform(8, symmetric=True)),
        "logits": None,
        "attention": TwinSoftmax(6),
        "gelu": TwinGelu(6),
    },
}


@pytest.fixture(scope="module")
def small_swin_graph() -> FloatGraph:
    return swin_transformer_graph(small_swin(), "swin", mean=(0.52, 0.4, 0.3), std=(0.2, 0.25, 0.3))


@pytest.mark.parametrize("network", ["small_graph", "small_swin_graph"])
@pytest.mark.parametrize("name", MIXED)
def test_parts_of_recipes_mix(
    name: str, network: str, small_images: np.ndarray, request: pytest.FixtureRequest
) -> None:
    """Any combination calibrates, lowers, runs alike on both executors and follows the fake-quantized network."""
    graph = request.getfixturevalue(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the small network's batches are small for a percentile
        calibration = calibrate(graph, small_images, mixed(**MIXED[name]))
    program = lower(calibration)
    logits, kept = Executor(program).run(small_images, keep=None)
    reference, expected = Executor(program, "reference").run(small_images, keep=None)
    assert np.array_equal(logits, reference)
    assert all(np.array_equal(kept[point], expected[point]) for point in expected)
    fake = FakeQuantNetwork(calibration).run(small_images)
    assert (logits.argmax(axis=1) == fake.argmax(axis=1)).mean() > 0.7


def test_recipes_that_no_network_can_have(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    with pytest.raises(HwsimError, match=r"Log-Int-Softmax .* works on score codes"):
        calibrate(small_graph, small_images, mixed(scores=None, attention=Log2(4)))
    both = mixed(**dict.fromkeys(("query", "key", "value"), Uniform(8, symmetric=True, heads=True)))
    with pytest.raises(HwsimError, match="quantizes it both whole and by heads"):
        lower(calibrate(small_graph, small_images, both))
    with pytest.raises(HwsimError, match="residual sums and LayerNorm inputs cannot be on a"):
        lower(calibrate(small_graph, small_images, mixed(residual=TwinGelu(8))))


def test_more_range_than_the_power_of_two_factors_need() -> None:
    """PTS takes the range of all batches; only its factors come from the last."""
    observer = PowerOfTwo(8).observer()
    first, last = torch.tensor([[-1.0, 9.0]]), torch.tensor([[-1.0, 0.5], [1.0, 0.1]])
    for batch in (first, last):
        observer.update(batch)
    grid = observer.grid(last)
    assert grid.record()["base"] == pytest.approx(10 / 255 / 8)


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("bits", ["8/8/8", "8/8/4"])
def test_same_images_same_program(
    name: str,
    bits: str,
    small_graph: FloatGraph,
    small_images: np.ndarray,
    tmp_path: Path,
) -> None:
    """Byte for byte; other images or another order of the batches give another one."""

    def program(images: np.ndarray, file: str) -> bytes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # small batches for a percentile
            calibration = calibrate(small_graph, images, fq_vit(bits, range=name, calibration_batch=8))
        save_program(lower(calibration), tmp_path / file)
        return (tmp_path / file).read_bytes()

    first = program(small_images, "first")
    assert program(small_images.copy(), "second") == first
    assert program(small_images[:16], "fewer") != first
    if name == "ema":
        assert program(small_images[::-1].copy(), "backwards") != first


@pytest.mark.parametrize("value", [0.75, -3.0, 0.0])
@pytest.mark.parametrize("quantizer", [Uniform(8), Uniform(8, "omse"), PowerOfTwo(8)])
def test_a_constant_has_a_code(value: float, quantizer: Uniform | PowerOfTwo) -> None:
    """A range without extent reaches to 0, so that its value comes back; as released it would end next to 0."""
    x = torch.full((5, 3), value)
    observer = quantizer.observer()
    observer.update(x)
    grid = observer.grid(x)
    torch.testing.assert_close(grid.values(grid.codes(x)), x, rtol=1e-6, atol=0)


@pytest.mark.parametrize("pts", [False, True])
def test_constant_activation_warns_and_goes_through(pts: bool, small_images: np.ndarray) -> None:
    """A projection without weights whose bias is the same everywhere: named in a warning, and exact in integers."""
    model = small_model()
    with torch.no_grad():
        model.blocks[0].mlp.fc2.weight.zero_()
        model.blocks[0].mlp.fc2.bias.fill_(0.5)
    graph = vision_transformer_graph(model, "flat", mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.warns(UserWarning, match=r"flat: the activation blocks\.0\.mlp\.fc2 is 0\.5 everywhere"):
        calibration = calibrate(graph, small_images, fq_vit("8/8/8", pts=pts, calibration_batch=8))
    program = lower(calibration)
    codes = Executor(program).run(small_images[:2], keep=["blocks.0.mlp.fc2"])[1]["blocks.0.mlp.fc2"]
    grid = calibration.uniform_grid("blocks.0.mlp.fc2")
    assert np.unique((codes - np.int64(grid.zero_point)) * grid.scale) == pytest.approx([0.5])
    fake = FakeQuantNetwork(calibration).run(small_images)
    assert (Executor(program).predict(small_images).argmax(axis=1) == fake.argmax(axis=1)).mean() > 0.7
