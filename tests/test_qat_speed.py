"""What makes training fast must not change it: fused kernels, one tensor for all parameters, devices by number."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.optim.lamb import Lamb

from hwsim.networks.graph import FloatGraph
from hwsim.networks.interpret import Interpreter
from hwsim.qat.distillation import DistillationLoss
from hwsim.qat.distributed import chosen_device
from hwsim.qat.network import GraphModule, QuantizedNetwork
from hwsim.qat.optimizer import ParameterUpdate
from hwsim.qat.settings import TrainingSettings
from hwsim.qat.start import first_grids
from hwsim.quantize.q_vit import fit_irm, q_vit

CPU = torch.device("cpu")

# Runs where Triton interprets its kernels on the CPU, which it decides when they are defined.
KERNELS = """
import torch
from torch.nn import functional
from hwsim.qat.norm_kernels import ShortRows
from hwsim.quantize import lsq_kernels
from hwsim.quantize.lsq import LearnedStep

torch.manual_seed(0)
one = torch.ones(())
for shape, rows, low, high, zero in (
    ((5, 7, 133), 0, 0, 3, 1.3), ((2, 41), 0, 0, 15, 7.0), ((12, 64), 12, -4, 3, 0.0), ((3, 1500), 3, -128, 127, 0.0)
):
    x = 2 * torch.randn(shape)
    x[0].view(-1)[:20] = (torch.arange(20) - 10) / 2 * 0.375  # between two codes of the first row
    x.requires_grad_()
    step = (torch.rand(rows, 1) + 0.2 if rows else torch.tensor(0.375)).requires_grad_()
    if rows:
        step.data[0] = 0.375
    zero_point = torch.tensor(zero, requires_grad=True)
    first, last = torch.tensor(float(low)), torch.tensor(float(high))
    assert lsq_kernels.fits(x, step, zero_point)
    plain = LearnedStep.apply(x, step, zero_point, first, last, one, torch.float32, False)
    gradient = torch.randn(shape)
    plain.backward(gradient)
    with torch.no_grad():
        assert torch.equal(lsq_kernels.forward(x, step, zero_point, first, last, torch.float32), plain)
        of_x, of_step, of_zero = lsq_kernels.backward(x, gradient, step, zero_point, first, last)
        assert torch.equal(of_x, x.grad)
        torch.testing.assert_close(of_step, step.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(of_zero, zero_point.grad, rtol=1e-4, atol=1e-4)
        _, other, _ = lsq_kernels.backward(x, gradient, step * 1.01, zero_point, first, last)
        assert (other - of_step).abs().max() > 1e-2
        x[-1] = float("nan")
        assert lsq_kernels.forward(x, step, zero_point, first, last, torch.float32)[-1].isnan().all()
for shape in ((3, 2, 50, 16), (7, 5, 24), (300, 64)):
    x, weight, bias = (torch.randn(part).requires_grad_() for part in (shape, shape[-1:], shape[-1:]))
    gradient, found = torch.randn(shape), []
    for run in (functional.layer_norm, lambda x, _, *rest: ShortRows.apply(x, *rest)):
        y = run(3 * x + 1, shape[-1:], weight, bias, 1e-5)
        y.backward(gradient)
        found.append([y.detach(), x.grad, weight.grad, bias.grad])
        x.grad = weight.grad = bias.grad = None
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        assert (ShortRows.apply(3 * x + 1, weight, bias, 1.0) - found[0][0]).abs().max() > 1e-3
assert not lsq_kernels.fits(torch.ones(2, 3, 4), torch.ones(3, 1), one)
assert not lsq_kernels.fits(torch.ones(2, 3), torch.ones(2, 1), torch.ones(2, 1))
print("same")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="this build of torch comes without Triton")
def test_fused_kernels_are_the_plain_operations() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run([sys.executable, "-c", KERNELS], env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout == "same\n", ran.stderr


def small_network(graph: FloatGraph, images: np.ndarray) -> QuantizedNetwork:
    recipe = q_vit("3/3/3")
    student = fit_irm(graph, images)
    return QuantizedNetwork(student, recipe, first_grids(student, recipe, images, "lsq"), 8, CPU)


def test_one_tensor_of_parameters_trains_as_many(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    settings = TrainingSettings(learning_rate=1e-2, clip=0.1)
    x, labels = Interpreter(small_graph).load(small_images[:8]), torch.arange(8) % 7
    joined, single = (small_network(small_graph, small_images) for _ in range(2))
    update = ParameterUpdate(joined, settings)
    (whole,) = update.optimizer.param_groups[0]["params"]
    other = Lamb(list(single.named_tensors().values()), lr=1e-2, weight_decay=0.0, max_grad_norm=0.1)
    teacher = GraphModule(small_graph, CPU)
    for _ in range(3):
        update.clear()
        other.zero_grad()
        for network in (joined, single):
            DistillationLoss(network, teacher, distillation=True, dgd=1.0, autocast=False)(x, labels)[0].backward()
        # The same gradients, so that only the update is compared.
        for mine, tensor in zip(joined.named_tensors().values(), single.named_tensors().values(), strict=True):
            tensor.grad = mine.grad.clone()
        update.gather()
        update.step(1e-2)
        other.step()
        for key, tensor in single.named_tensors().items():
            torch.testing.assert_close(joined.named_tensors()[key], tensor, rtol=1e-5, atol=1e-6, msg=key)
    inside = sum(tensor.numel() for tensor in single.parameters())
    assert whole.numel() > inside and int((whole != 0).sum()) <= inside  # nothing grows between the parameters
    with torch.no_grad():
        whole.fill_(2.0)
    assert all(bool((tensor == 2).all()) for tensor in joined.named_tensors().values())


def test_weight_decay_is_for_weights_alone(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    network = small_network(small_graph, small_images)
    update = ParameterUpdate(network, replace(TrainingSettings(), weight_decay=0.1))
    linear = {f"{node.name}.weight" for node in network.graph.nodes if node.operation == "linear"}
    names = {id(tensor): key for key, tensor in network.named_tensors().items()}
    decayed, rest = ({names[id(tensor)] for tensor in group["params"]} for group in update.optimizer.param_groups)
    assert decayed == linear
    assert decayed | rest == set(names.values())
    assert [group["weight_decay"] for group in update.optimizer.param_groups] == [0.1, 0.0]


def test_narrow_values_go_into_products_only(small_graph: FloatGraph, small_images: np.ndarray) -> None:
    """In bfloat16 training, what a quantizer gives is narrow where a product alone reads it, and nowhere else."""
    recipe = q_vit("3/3/3", irm=False)
    recipe = replace(recipe, points={**recipe.points, "residual": recipe.points["norm"]})
    start = first_grids(small_graph, recipe, small_images, "lsq")
    network = QuantizedNetwork(small_graph, recipe, start, 8, CPU)
    kinds: dict[str, torch.dtype] = {}
    plain = network.after
    network.after = lambda node, value: kinds.setdefault(node.name, (r := plain(node, value)).dtype) and r  # type: ignore[assignment, method-assign]
    with torch.autocast("cpu", torch.bfloat16):
        network(Interpreter(small_graph).load(small_images[:2]))
    for name in ("blocks.0.norm1", "blocks.0.attn.q", "blocks.0.attn.softmax", "blocks.1.mlp.gelu"):
        assert kinds[name] == torch.bfloat16, name
    assert {kinds[f"blocks.{block}.add{place}"] for block in (0, 1) for place in (1, 2)} == {torch.float32}


def test_devices_have_their_number() -> None:
    assert chosen_device("cuda", 1, 0) == torch.device("cuda:0")
    assert chosen_device("cuda", 4, 3) == torch.device("cuda:3")
    assert chosen_device("cuda:2", 4, 3) == torch.device("cuda:2")
    assert chosen_device("cpu", 2, 1) == CPU
