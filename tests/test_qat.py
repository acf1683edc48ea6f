"""Parts of quantization-aware training: learned steps, the trainable network, its losses."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from golden.errors import HwsimError
from hwsim.cli.source import make_recipe
from hwsim.networks.embedded import load_calibration_set
from hwsim.networks.graph import FloatGraph
from hwsim.networks.interpret import Interpreter
from hwsim.networks.load import load_network
from hwsim.networks.swin_transformer import swin_transformer_graph
from hwsim.networks.vision_transformer import vision_transformer_graph
from hwsim.qat.checkpoint import Place, load_checkpoint, save_checkpoint
from hwsim.qat.distillation import DistillationLoss, dgd_loss, relation_distance
from hwsim.qat.export import calibration_of, load_trained, save_trained
from hwsim.qat.network import TRAINS, GraphModule, QuantizedNetwork, check_trainable
from hwsim.qat.optimizer import ParameterUpdate
from hwsim.qat.settings import TrainingSettings
from hwsim.qat.start import first_grids
from hwsim.quantize.adalog import repq_vit
from hwsim.quantize.calibrate import Calibration
from hwsim.quantize.fake_quant import FakeQuantNetwork
from hwsim.quantize.lsq import SMALLEST_STEP, gradient_scale, initial_step, lsq
from hwsim.quantize.ptq4vit import ptq4vit
from hwsim.quantize.q_vit import fit_irm, q_vit
from hwsim.quantize.quantizers.uniform import Uniform, UniformGrid
from hwsim.quantize.recipe import Recipe, fq_vit
from hwsim.quantize.weights import SymmetricWeights
from tests.conftest import small_distilled, small_model, small_swin

CPU = torch.device("cpu")
MOMENTS: Any = {"mean": (0.52, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}


def network_of(graph: FloatGraph, recipe: Recipe, images: np.ndarray, method: str = "lsq") -> QuantizedNetwork:
    student = fit_irm(graph, images) if recipe.irm else graph
    return QuantizedNetwork(student, recipe, first_grids(student, recipe, images, method), 8, CPU)


# --- learned steps


@pytest.mark.parametrize(("bits", "zero"), [(2, 0), (2, 2), (3, 1), (4, 7), (8, 130)])
def test_lsq_is_the_uniform_grid(bits: int, zero: int) -> None:
    torch.manual_seed(bits)
    # Many values lie exactly between two codes: there the rounding shows.
    x = torch.cat([torch.randn(4000), (torch.arange(-1200, 1200) / 2) * 0.3125])
    for step in (0.3125, 0.1, 1e-3):
        grid = UniformGrid(float(torch.tensor(step)), zero, bits)
        got = lsq(x, torch.tensor(step), 0, grid.highest, torch.tensor(float(zero)))
        assert torch.equal(got, grid.values(grid.codes(x)))
        # The zero point is learned as a real number and used as a code.
        moved = lsq(x, torch.tensor(step), 0, grid.highest, torch.tensor(zero + 0.4))
        assert torch.equal(moved, got)


def test_lsq_is_the_weights_of_a_program() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 40)
    step = torch.rand(6, 1) + 0.1
    for bits in (2, 3, 4, 8):
        quantized = SymmetricWeights(bits).quantize(weight.numpy(), step[:, 0].numpy())
        got = lsq(weight, step, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        np.testing.assert_array_equal(got.numpy(), quantized.values())
        assert bits == 8 or quantized.codes.min() == -(1 << (bits - 1))


@pytest.mark.parametrize(("low", "high", "zero"), [(-2, 1, 0.0), (0, 3, 1.3), (0, 15, 6.0)])
def test_lsq_gradients_are_the_published_ones(low: int, high: int, zero: float) -> None:
    """Equation 3 of LSQ, one value after the other in plain Python."""
    torch.manual_seed(high)
    x = (3 * torch.randn(50)).requires_grad_()
    gradient = torch.randn(50)
    step, zero_point = (torch.tensor(value, requires_grad=True) for value in (0.4, zero))
    lsq(x, step, low, high, zero_point, 0.25).backward(gradient)
    of_step = of_zero = 0.0
    for value, weight, mine in zip(x.tolist(), gradient.tolist(), x.grad.tolist(), strict=True):
        position = value / 0.4 + round(zero)
        clipped = not low <= position <= high
        end = low if position < low else high
        assert mine == (0.0 if clipped else pytest.approx(weight))
        of_step += weight * ((end - round(zero)) if clipped else round(position) - position)
        of_zero += -0.4 * weight if clipped else 0.0
    assert step.grad.item() == pytest.approx(0.25 * of_step, rel=1e-4)
    assert zero_point.grad.item() == pytest.approx(0.25 * of_zero, rel=1e-4, abs=1e-6)


def test_every_channel_has_its_own_gradient() -> None:
    weight = torch.tensor([[0.2, 5.0], [0.2, -0.4]], requires_grad=True)
    step = torch.full((2, 1), 0.5, requires_grad=True)
    lsq(weight, step, -2, 1).sum().backward()
    # 0.2 is 0.4 steps and goes to 0: -0.4. 5.0 is clipped to 1. -0.4 is -0.8 steps and goes to -1: -0.2.
    np.testing.assert_allclose(step.grad.numpy(), [[-0.4 + 1.0], [-0.4 - 0.2]], rtol=1e-6)
    np.testing.assert_array_equal(weight.grad.numpy(), [[1, 0], [1, 1]])


def test_published_constants() -> None:
    assert gradient_scale(64, 1) == 1 / 8
    assert gradient_scale(100, 7) == pytest.approx(700**-0.5)
    np.testing.assert_allclose(initial_step(torch.tensor([0.5, 3.0]), 4).numpy(), [0.5, 3.0])
    assert initial_step(torch.zeros(1), 1).item() == pytest.approx(SMALLEST_STEP)


# --- the trainable network


GRAPHS = {
    "vit": lambda: vision_transformer_graph(small_model(), "small", **MOMENTS),
    "distilled": lambda: vision_transformer_graph(small_distilled(), "small", **MOMENTS),
    "swin": lambda: swin_transformer_graph(small_swin(), "small", **MOMENTS),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize(("bits", "irm", "method"), [("2", True, "lsq"), ("4/3/4", False, "lsq"), ("3", True, "omse")])
def test_network_is_the_fake_quantized_one(
    name: str, bits: str, irm: bool, method: str, small_images: np.ndarray
) -> None:
    """The same code at every point, of the network as it starts and of another one."""
    graph = GRAPHS[name]()
    network = network_of(graph, q_vit(bits, irm=irm), small_images[:12], method)
    generator = torch.Generator().manual_seed(1)
    for change in (0.0, 0.2):
        with torch.no_grad():
            for key, tensor in network.named_tensors().items():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor += change * (noise if key.endswith("zero_point") else noise.abs() * tensor)
        assert_same_codes(network, small_images, calibration_of(network, small_images[:12]))


def assert_same_codes(network: QuantizedNetwork, images: np.ndarray, calibration: Calibration) -> None:
    codes: dict[str, np.ndarray] = {}
    fake = FakeQuantNetwork(calibration)
    logits = fake.run(images, codes)
    values: dict[str, torch.Tensor] = {}
    plain = network.after

    def keep(node: Any, value: torch.Tensor) -> torch.Tensor:
        result = plain(node, value)
        if node.name in codes:
            values[node.name] = result
        return result

    network.after = keep  # type: ignore[method-assign]
    with torch.no_grad():
        mine, _ = network(fake.interpreter.load(images))
    del network.after
    assert set(values) == set(codes) == set(network.points())
    for name, value in values.items():
        grid = calibration.uniform_grid(name)
        np.testing.assert_array_equal(value.numpy(), grid.values(torch.from_numpy(codes[name])).float().numpy(), name)
        assert len(np.unique(codes[name])) <= 1 << grid.bits
    np.testing.assert_array_equal(mine.numpy(), logits)


def test_a_moved_step_is_seen(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """The comparison above notices a step that is off in its last place, and a single other weight code."""
    network = network_of(small_graph, q_vit("4/4/4"), small_images)
    calibration = calibration_of(network, small_images)
    assert_same_codes(network, small_images, calibration)
    grid = calibration.uniform_grid("blocks.0.attn.v")
    moved = replace(grid, scale=float(np.nextafter(np.float32(grid.scale), np.float32(1))))
    with pytest.raises(AssertionError):
        assert_same_codes(
            network, small_images, replace(calibration, grids={**calibration.grids, "blocks.0.attn.v": moved})
        )
    weight = calibration.weights["blocks.1.mlp.fc2"]
    weight.codes[0, 0] ^= 1
    with pytest.raises(AssertionError):
        assert_same_codes(network, small_images, calibration)


def test_steps_start_at_the_published_formula(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    recipe = q_vit("2/4/3", irm=False)
    start = first_grids(small_graph, recipe, small_images, "lsq")
    seen: dict[str, np.ndarray] = {}
    Interpreter(small_graph).run(
        small_images, after=lambda node, value: seen.setdefault(node.name, value.numpy()) is None or value
    )
    norm = seen["blocks.1.norm2"].astype(np.float64)
    point = start.points["blocks.1.norm2"]
    assert point.step == pytest.approx(2 * np.abs(norm).mean() / 7**0.5, rel=1e-5)
    assert point.zero_point == min(round(-norm.min() / point.step), 8)
    attention = start.points["blocks.0.attn.softmax"]  # 3 bit, from 0 on
    assert (attention.one_sided, attention.zero_point) == (True, 0)
    assert attention.step == pytest.approx(2 * seen["blocks.0.attn.softmax"].mean() / 7**0.5, rel=1e-5)
    weight = small_graph["blocks.0.mlp.fc1"].parameters["weight"]
    np.testing.assert_allclose(start.weights["blocks.0.mlp.fc1"], 2 * np.abs(weight).mean(axis=1), rtol=1e-5)
    # 8 bit takes the range: the first and the last code are the ends of it.
    image = start.points["image"]
    ends = [(code - image.zero_point) * image.step for code in (0, 255)]
    np.testing.assert_allclose(ends, [seen["image"].min(), seen["image"].max()], atol=image.step)
    with pytest.raises(HwsimError, match="at least one calibration image"):
        first_grids(small_graph, recipe, small_images[:0], "lsq")


def test_steps_stay_positive(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    network = network_of(small_graph, q_vit("2/2/2"), small_images)
    with torch.no_grad():
        for key, tensor in network.named_tensors().items():
            if key.rpartition(".")[2].startswith("step"):
                tensor.fill_(-1.0)
    network.keep_steps_positive()
    for place, bits in network.bits.items():
        got = network.step(place).detach().numpy()
        np.testing.assert_allclose(got, SMALLEST_STEP, rtol=0 if bits == 2 else 1e-6, err_msg=place)


def test_wide_steps_are_learned_relative_to_their_start(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """The parameter of an 8-bit step is its ratio to the first one, with the gradient of the chain rule."""
    recipe = q_vit("3/3/3", irm=False)
    start = first_grids(small_graph, recipe, small_images, "lsq")
    network = QuantizedNetwork(small_graph, recipe, start, 8, CPU)
    places = ("image", "patch_embed.proj.weight", "head.weight")
    wide = {place for place, bits in network.bits.items() if bits == 8}
    assert wide == {*places, "norm"}  # what the head reads
    tensors = network.named_tensors()
    ratio, narrow = tensors["patch_embed.proj.weight.step_ratio"], tensors["blocks.0.mlp.fc1.weight.step"]
    first = start.weights["patch_embed.proj"][:, None]
    np.testing.assert_array_equal(ratio.detach().numpy(), np.ones_like(first))
    np.testing.assert_array_equal(network.step("patch_embed.proj.weight").detach().numpy(), first)
    np.testing.assert_array_equal(narrow.detach().numpy(), start.weights["blocks.0.mlp.fc1"][:, None])
    with torch.no_grad():
        ratio *= 1.25
    np.testing.assert_allclose(network.step("patch_embed.proj.weight").detach().numpy(), 1.25 * first, rtol=1e-6)
    # LSQ's gradient of the step (its Eq. 3, by hand in float64), times what the step moves with the ratio.
    weight = small_graph["patch_embed.proj"].parameters["weight"].astype(np.float64)
    step = network.step("patch_embed.proj.weight").detach().numpy().astype(np.float64)
    coefficient = np.random.default_rng(0).normal(size=weight.shape)
    used = network.parameters_of(small_graph["patch_embed.proj"])["weight"]
    (used * torch.from_numpy(coefficient.astype(np.float32))).sum().backward()
    position = weight / step
    slope = np.where(np.abs(position) > 127, np.sign(position) * 127, np.round(position) - position)
    scale = 1 / np.sqrt(weight.shape[1] * 127)
    expected = (coefficient * slope).sum(axis=1, keepdims=True) * scale * first
    np.testing.assert_allclose(ratio.grad.numpy(), expected, rtol=1e-3, atol=1e-7)


def test_checkpoint_holds_what_steps_are_relative_to(
    small_graph: FloatGraph, small_images: np.ndarray, tmp_path: Path
) -> None:
    """A machine that observes other first steps goes on with those of the checkpoint."""
    recipe, settings = q_vit("3/3/3", irm=False), TrainingSettings()
    saved, other = (network_of(small_graph, recipe, small_images[part]) for part in (slice(0, 12), slice(12, 24)))
    assert saved.step("norm") != other.step("norm")
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, saved, ParameterUpdate(saved, settings).optimizer, {}, Place(1))
    load_checkpoint(path, other, ParameterUpdate(other, settings).optimizer, {})
    for place in saved.bits:
        assert torch.equal(saved.step(place), other.step(place)), place


def test_eight_bits_stay_eight_bits_in_a_short_run() -> None:
    """The first and the last layer use their codes after 20 steps at a rate as large as their steps."""
    graph, found = load_network("embedded"), load_calibration_set()
    assert found.labels is not None
    images, labels = found.images[:16], torch.from_numpy(found.labels[:16].astype(np.int64))
    network = network_of(graph, q_vit("4/4/4", irm=False), images)
    before = calibration_of(network, images).weights
    update = ParameterUpdate(network, TrainingSettings(learning_rate=2e-3))
    x = Interpreter(graph).load(images)
    for step in range(20):
        chosen = torch.arange(2) + 2 * (step % 8)
        update.clear()
        torch.nn.functional.cross_entropy(network(x[chosen])[0], labels[chosen]).backward()
        update.gather()
        update.step(2e-3)
        network.keep_steps_positive()
    calibration = calibration_of(network, images)
    for layer in ("patch_embed.proj", "head"):
        first, last = (np.abs(weights[layer].codes).max(axis=1) for weights in (before, calibration.weights))
        assert np.median(first) >= 127
        assert np.median(last) > 100, (layer, last)
    (image,) = (node.name for node in graph.nodes if node.role == "input")
    codes: dict[str, np.ndarray] = {}
    FakeQuantNetwork(calibration).run(images, codes)
    assert np.ptp(codes[image]) > 200


def test_recipes_that_messages_name_can_be_trained(small_graph: FloatGraph) -> None:
    for bits in (4, 8):
        words = TRAINS.replace("BITS", str(bits)).replace(",", "").split()
        recipes = [name for option, name in pairwise(words) if option == "--recipe"]
        points = tuple(name for option, name in pairwise(words) if option == "--point")
        assert recipes == ["q-vit", "fq-vit"] and len(points) == 2
        check_trainable(small_graph, make_recipe("q-vit", bits=str(bits)))
        check_trainable(small_graph, make_recipe("fq-vit", points_at=points, bits=str(bits)))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (fq_vit("8/8/4"), "training takes uniform codes .* has a PowerOfTwo"),
        (ptq4vit("8/8/8"), "training takes"),
        (repq_vit("4/4/4"), "training takes"),
        (replace(q_vit(), points={"norm": Uniform(4, heads=True)}), "norm1 has a Uniform"),
        (replace(q_vit(), weights=SymmetricWeights(4, groups=1)), "signed weights with a scale an output channel"),
    ],
)
def test_recipe_that_cannot_be_trained(
    recipe: Recipe, message: str, small_graph: FloatGraph, small_images: np.ndarray
) -> None:
    start = first_grids(small_graph, q_vit(irm=False), small_images, "lsq")
    with pytest.raises(HwsimError, match=message):
        QuantizedNetwork(small_graph, recipe, start, 8, CPU)


def test_trained_file_comes_back_and_notices_damage(
    small_graph: FloatGraph, small_images: np.ndarray, tmp_path: Path
) -> None:
    network = network_of(small_graph, q_vit("2/3/4"), small_images)
    calibration = calibration_of(network, small_images)
    path = tmp_path / "trained.safetensors"
    save_trained(path, calibration, {"epochs": 3})
    again, training = load_trained(path)
    assert training == {"epochs": 3}
    assert again.recipe == calibration.recipe
    assert (again.grids, again.ranges, again.images) == (calibration.grids, calibration.ranges, 24)
    pair = [FakeQuantNetwork(found).run(small_images) for found in (calibration, again)]
    np.testing.assert_array_equal(*pair)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(HwsimError, match=r"checksum .* does not match, .*; train again"):
        load_trained(path)


# --- losses


def frobenius_of_patterns(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Equations 10 and 11 as they are written, in float64."""

    def pattern(x: np.ndarray) -> np.ndarray:
        gram = x @ x.swapaxes(-1, -2)
        return gram / np.linalg.norm(gram, axis=(-1, -2), keepdims=True)

    distance: np.ndarray = np.linalg.norm(pattern(a) - pattern(b), axis=(-1, -2))
    return distance


@pytest.mark.parametrize("shape", [(3, 2, 10, 4), (2, 4, 3, 5, 16)])
def test_relation_distance_is_that_of_the_similarity_matrices(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    for size in (1e-6, 1.0, 1e6):
        a, b = rng.normal(size=shape), size * (rng.normal(size=shape) + 0.3)
        got = relation_distance(torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32))
        np.testing.assert_allclose(got.numpy(), frobenius_of_patterns(a, b), rtol=1e-4)
    same = relation_distance(torch.tensor(a), torch.tensor(7 * a))
    assert same.max() <= 1.1e-3
    total = dgd_loss([torch.tensor(a), torch.tensor(b)], [torch.tensor(b), torch.tensor(a)])
    # Summed over blocks and heads, a mean over images and windows.
    expected = 2 * frobenius_of_patterns(a, b).sum(axis=-1).mean()
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_loss_is_equation_5_and_the_teacher_stays(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    network = network_of(small_graph, q_vit("3/3/3"), small_images)
    teacher = GraphModule(small_graph, CPU)
    interpreter = Interpreter(small_graph)
    x, labels = interpreter.load(small_images[:8]), torch.arange(8) % 7
    known = interpreter.run(small_images[:8]).numpy()
    with torch.no_grad():
        logits = network(x)[0].numpy().astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    of_labels = -log_probabilities[np.arange(8), labels.numpy()].mean()
    of_teacher = -log_probabilities[np.arange(8), known.argmax(axis=1)].mean()
    for distillation, dgd in ((True, 0.0), (False, 0.0), (True, 0.5)):
        loss = DistillationLoss(network, teacher, distillation=distillation, dgd=dgd, autocast=False)
        parts = loss(x, labels)
        assert parts[1].item() == pytest.approx(of_labels, rel=1e-4)
        assert parts[2].item() == pytest.approx(of_teacher if distillation else 0.0, rel=1e-4)
        classes = (of_labels + of_teacher) / 2 if distillation else of_labels
        assert parts[0].item() == pytest.approx(classes + dgd * parts[3].item(), rel=1e-4)
        assert (parts[3].item() > 0) == (dgd > 0)
    parts[0].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(tensor.grad is not None for tensor in network.named_tensors().values())


def test_bfloat16_keeps_steps_and_losses_in_float32(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    network = network_of(small_graph, q_vit("4/4/4"), small_images)
    x, labels = Interpreter(small_graph).load(small_images[:8]), torch.arange(8) % 7
    parts = [
        DistillationLoss(network, GraphModule(small_graph, CPU), distillation=True, dgd=1.0, autocast=autocast)(
            x, labels
        )
        for autocast in (False, True)
    ]
    assert parts[1].dtype == torch.float32
    np.testing.assert_allclose(parts[1].detach().numpy(), parts[0].detach().numpy(), rtol=0.15)
    parts[1][0].backward()
    assert {tensor.grad.dtype for tensor in network.named_tensors().values()} == {torch.float32}
