"""How time and memory grow with the size of a network, with the batch and with the number of images."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from golden.errors import HwsimError
from hwsim.bench.measure import EXPONENT, Table, growth_exponent, peak_memory
from hwsim.execute import Executor
from hwsim.program import Program, load_program, save_program

# A ViT with heads of 64 channels that is varied in one dimension at a time.
BASE = {"tokens": 197, "width": 192, "depth": 2, "batch": 8}
RANGES = {
    "tokens": (50, 197, 401, 1025),
    "width": (64, 128, 256, 512, 1024),
    "depth": (1, 2, 4, 8),
    "batch": (1, 4, 16, 64),
}
IMAGES = (64, 256, 1024)
# Next to nothing: what a process takes that loads all libraries and kernels.
BARE = {"tokens": 5, "width": 64, "depth": 1, "batch": 1}
# Memory, in MiB, that peaks of equal processes differ by: less above the bare process counts as this.
LEAST_MEMORY = 1.0
PATCH = 4


def growth(rounds: int) -> Table:
    """Milliseconds an image and peak memory against tokens, width, depth and batch; memory against images."""
    rows: list[tuple[Any, ...]] = []
    figures = {}
    _, bare = _measure(_program(BARE), BARE["batch"], 1)
    for dimension, sizes in RANGES.items():
        seconds, memory = [], []
        for size in sizes:
            point = {**BASE, dimension: size}
            second, mebibytes = _measure(_program(point), point["batch"], rounds)
            seconds.append(second)
            memory.append(mebibytes)
            figures[f"{dimension} {size}: peak memory, MiB"] = mebibytes
        values = [float(size) for size in sizes]
        above = [max(mebibytes - bare, LEAST_MEMORY) for mebibytes in memory]
        exponents = {"time": growth_exponent(values, seconds), "memory": growth_exponent(values, above)}
        rows += [
            (
                f"{dimension} {size}",
                f"{1e3 * second / (size if dimension == 'batch' else BASE['batch']):.2f}",
                f"{mebibytes:.1f}",
                *(f"{exponent:.2f}" if size == sizes[-1] else "" for exponent in exponents.values()),
            )
            for size, second, mebibytes in zip(sizes, seconds, memory, strict=True)
        ]
        for quantity, exponent in exponents.items():
            figures[f"{quantity} against {dimension}, {EXPONENT}"] = exponent
    program = _program(BASE)
    for images in IMAGES:
        # One image, repeated without memory: what grows would be the executor's.
        second, mebibytes = _measure(program, images, min(rounds, 2), repeated=True)
        rows.append((f"images {images}", f"{1e3 * second / images:.2f}", f"{mebibytes:.1f}", "", ""))
        figures[f"images {images}: peak memory, MiB"] = mebibytes
    shape = ", ".join(f"{name} {value}" for name, value in BASE.items())
    return Table(
        "Growth",
        ("network", "ms/image", "peak memory, MiB", "exponent of the time", "exponent of the memory"),
        tuple(rows),
        f"ViT of random weights, heads of 64 channels, 8/8/4 (where not varied: {shape}). Times are of the "
        "fastest round, memory is the peak of a process that loads and runs the program, with the kernels on disk. The "
        f"exponents are the slopes of log time and log memory of a batch against log size; of memory, of what is above "
        f"the {bare:.1f} MiB of a process that runs next to nothing.",
        figures,
    )


def _measure(program: Program, count: int, rounds: int, repeated: bool = False) -> tuple[float, float]:
    """Seconds of a batch in the fastest round, and the peak memory of a process of its own that does nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.safetensors"
        save_program(program, path)
        # The first one may compile kernels, which takes more memory than running.
        for turns in (1, rounds):
            code = f"from hwsim.bench.growth import run_file; run_file({str(path)!r}, {count}, {turns}, {repeated})"
            result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            if result.returncode:
                raise HwsimError(f"a measured process failed: {result.stderr.strip().splitlines()[-1]}")
    seconds, mebibytes = json.loads(result.stdout)
    return seconds, mebibytes


def run_file(path: str, count: int, rounds: int, repeated: bool) -> None:
    """Run a program file on random images (or one, repeated without memory); print seconds and peak memory in MiB."""
    program = load_program(Path(path))
    executor = Executor(program)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1 if repeated else count, *program.image_size), dtype=np.uint8)
    if repeated:
        images = np.broadcast_to(images, (count, *program.image_size))
    executor.predict(images)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        executor.predict(images)
        seconds.append(time.perf_counter() - start)
    print(json.dumps([min(seconds), peak_memory()]))


def _program(point: dict[str, int]) -> Program:
    import torch
    from timm.models.vision_transformer import VisionTransformer

    from hwsim.networks.load import float_graph
    from hwsim.quantize.calibrate import calibrate
    from hwsim.quantize.lowering import lower
    from hwsim.quantize.recipe import fq_vit

    side = PATCH * round((point["tokens"] - 1) ** 0.5)
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=side,
        patch_size=PATCH,
        num_classes=10,
        embed_dim=point["width"],
        depth=point["depth"],
        num_heads=point["width"] // 64,
    ).eval()
    graph = float_graph(model, "growth", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    images = np.random.default_rng(1).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    with warnings.catch_warnings():
        # Activations of random weights are constant where there are few tokens; that is nothing to tell.
        warnings.simplefilter("ignore")
        return lower(calibrate(graph, images, fq_vit(calibration_batch=2)))
