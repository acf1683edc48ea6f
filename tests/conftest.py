"""Fixtures: a very small random ViT, quantized, for tests that need a network but not a good one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from hwsim.networks.graph import FloatGraph
from hwsim.program import Program
from hwsim.quantize.calibrate import Calibration
from hwsim.quantize.recipe import Recipe
from hwsim.quantize.search.settings import PairSearch

if TYPE_CHECKING:
    from hwsim.explore.bench import Bench

SMALL = {
    "img_size": 16,
    "patch_size": 4,
    "in_chans": 3,
    "num_classes": 7,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2,
}


SMALL_SWIN = {
    "img_size": 16,
    "patch_size": 2,
    "in_chans": 3,
    "num_classes": 7,
    "embed_dim": 16,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 4,
    "mlp_ratio": 2,
}


def small_model(**changes: Any) -> Any:
    """A timm VisionTransformer with seeded random weights, spread so that its activations have outliers."""
    import torch
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return spread_weights(VisionTransformer(**{**SMALL, **changes}))


def small_distilled(**changes: Any) -> Any:
    """Like `small_model`, with DeiT's distillation token and second head."""
    import torch
    from timm.models.deit import VisionTransformerDistilled

    torch.manual_seed(0)
    return spread_weights(VisionTransformerDistilled(**{**SMALL, **changes}))


def small_swin(**changes: Any) -> Any:
    """A timm SwinTransformer of two stages like `small_model`, one block of them shifted."""
    import torch
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    return spread_weights(SwinTransformer(**{**SMALL_SWIN, **changes}))


def spread_weights(model: Any) -> Any:
    """Random weights far enough apart that activations have outliers, in evaluation mode."""
    import torch

    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(torch.empty_like(parameter).log_normal_(0, 0.5))
            elif "norm" in name or name.endswith("bias"):
                parameter.normal_(0, 0.2)
            elif parameter.ndim >= 2:
                parameter.mul_(3)
    return model


def quick(recipe: Recipe, **changes: Any) -> Recipe:
    """An AdaLog recipe with a search that tries little."""
    assert isinstance(recipe.search, PairSearch)
    search = dataclasses.replace(
        recipe.search, **{"candidates": 32, "beam": 3, "gelu_beam": 3, "steps": 2, "rounds": 1, **changes}
    )
    return dataclasses.replace(recipe, search=search)


@pytest.fixture(scope="session")
def small_graph() -> FloatGraph:
    from hwsim.networks.vision_transformer import vision_transformer_graph

    return vision_transformer_graph(small_model(), "small", mean=(0.52, 0.4, 0.3), std=(0.2, 0.25, 0.3))


@pytest.fixture(scope="session")
def small_images() -> np.ndarray:
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (24, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return np.clip(blocks + rng.integers(-30, 31, (24, 16, 16, 3)), 0, 255).astype(np.uint8)


def quantize_small(graph: FloatGraph, images: np.ndarray, bits: str, **options: Any) -> tuple[Calibration, Program]:
    from hwsim.quantize.calibrate import calibrate
    from hwsim.quantize.lowering import lower
    from hwsim.quantize.recipe import fq_vit

    calibration = calibrate(graph, images, fq_vit(bits, calibration_batch=8, **options))
    return calibration, lower(calibration)


RECIPES = {
    "8/8/4": {},
    "8/8/8": {},
    "8/8/4 plain": {"pts": False},
    "8/8/4 adalog": {"attention": "adalog"},
    "6/6/3": {},
}


@pytest.fixture(scope="session", params=RECIPES)
def quantized(
    request: pytest.FixtureRequest, small_graph: FloatGraph, small_images: np.ndarray
) -> tuple[Calibration, Program]:
    """The small network by each recipe."""
    return quantize_small(small_graph, small_images, request.param.split()[0], **RECIPES[request.param])


@pytest.fixture(scope="session")
def small_program(small_graph: FloatGraph, small_images: np.ndarray) -> Program:
    """The small network at 8/8/4."""
    return quantize_small(small_graph, small_images, "8/8/4")[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real weights and ImageNet images beside the checkout; tests that need them skip without."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real DeiT-Tiny weights and ImageNet images beside this checkout")
    return folder


@pytest.fixture(scope="module")
def bench() -> Bench:
    """Where exploration measures its points: the embedded network on a few images."""
    from hwsim.explore.bench import Bench
    from hwsim.networks.embedded import load_calibration_set, load_test_set
    from hwsim.networks.load import load_network

    calibration = load_calibration_set().images[:16]
    return Bench(load_network("embedded"), calibration, load_test_set().head(64), "code")
