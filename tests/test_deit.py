"""DeiT-Tiny with its real weights on ImageNet images, where they lie beside the checkout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwsim.audit import audit
from hwsim.data import ImageSet, find_images, load_images
from hwsim.execute import Executor
from hwsim.networks.graph import FloatGraph
from hwsim.networks.load import load_network
from hwsim.quantize.calibrate import calibrate
from hwsim.quantize.lowering import lower
from hwsim.quantize.recipe import fq_vit


@pytest.fixture(scope="module")
def deit(shared_data: Path) -> FloatGraph:
    return load_network(str(shared_data / "deit_tiny_patch16_224.safetensors"))


def images(shared_data: Path, deit: FloatGraph, part: str, limit: int) -> ImageSet:
    source = find_images(shared_data / "imagenet" / part, limit=limit)
    return load_images(source, deit.image_size, crop_ratio=deit.crop_ratio, classes=1000)


def test_program_follows_the_published_network(deit: FloatGraph, shared_data: Path) -> None:
    """20 images for calibration, 24 to compare: figures for a test, not for a table."""
    chosen = images(shared_data, deit, "calib", 20)
    calibration = calibrate(deit, chosen.images, fq_vit("8/8/4", calibration_batch=10))
    program = lower(calibration)
    validation = images(shared_data, deit, "val", 24)
    result = audit(calibration, program, validation.images, validation.labels, batch=12)
    assert result.float_top1 is not None
    assert result.integer_top1 is not None
    assert result.float_top1 > 70
    assert result.integer_top1 >= result.float_top1 - 10  # two of 24 images
    assert result.same_prediction >= 0.9
    worst = max(result.points, key=lambda point: point.local.mean)
    assert worst.local.mean < 0.5, worst

    image = validation.images[:1]
    fast = Executor(program).run(image, keep=None)[1]
    slow = Executor(program, "reference").run(image, keep=None)[1]
    for name, array in slow.items():
        assert np.array_equal(fast[name], array), name
