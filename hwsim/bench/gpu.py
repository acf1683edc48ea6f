"""Whole networks on a GPU: the integer program against the same network in float PyTorch on the same GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from golden.errors import HwsimError
from hwsim.bench.measure import Table, alternate, median_and_spread, ratios
from hwsim.bench.networks import FLOAT, float_model
from hwsim.execute.cuda.availability import survey, why_not
from hwsim.execute.sharding import SHARD, ShardedExecutor
from hwsim.program import Program

INTEGER, REPLAYED = "integer program", "integer program, images on the GPU"
FLOAT_BATCH = 256
# Batches of a measurement.
BATCHES = 8


def gpu(programs: list[Program], rounds: int) -> Table:
    """Images a second of programs and of what they were made from on the first GPU, measured in turns.

    Parameters
    ----------
    programs : list of Program
    rounds : int

    Raises
    ------
    HwsimError
        There is no usable GPU.
    """
    reason = why_not()
    if reason is not None:
        raise HwsimError(f"bench --part gpu: {reason}")
    import torch

    rows: list[tuple[Any, ...]] = []
    figures = {}
    for program in programs:
        label = f"{program.network}, {program.recipe}"
        with ExitStack() as stack:
            candidates, images = _candidates(program, stack)
            times = alternate(candidates, rounds)
        for name, own in times.items():
            rate, spread = median_and_spread([images[name] / second for second in own.clock])
            slower = [second / images[FLOAT] for second in times[FLOAT].clock]
            ratio, ratio_spread = ratios([second / images[name] for second in own.clock], slower)
            relative = "1" if name == FLOAT else f"{ratio:.2f} ± {100 * ratio_spread:.0f} %"
            rows.append((label, name, f"{rate:,.0f} ± {100 * spread:.1f} %", relative))
            figures[f"{program.network}, {program.recipe}: {name} on the GPU, times float"] = ratio
            label = ""
    return Table(
        f"Whole networks on one {torch.cuda.get_device_name(0)}",
        ("network", "executor", "images/s", "times float"),
        tuple(rows),
        f"Median of {rounds} rounds, all candidates in turns in each; ± is half the distance of the quartiles. The "
        f"integer program takes uint8 images from the main memory and gives its logits back, on several GPUs through a "
        f"process each; the others have their images on the GPU. Float batches of {FLOAT_BATCH} images, integer ones "
        f"as many as the executor takes by default. PyTorch {torch.__version__}, {BATCHES} batches a measurement.",
        figures,
    )


def _on_several(program: Program, images: np.ndarray, stack: ExitStack) -> dict[str, tuple[Callable[[], object], int]]:
    """Where there are several usable GPUs: all of them together, with their images; closed with the stack."""
    backends = tuple(f"cuda:{index}" for index, reason in survey().items() if reason is None)
    if len(backends) < 2:
        return {}
    executor = stack.enter_context(ShardedExecutor(program, backends))
    # Enough that each has several parts of the largest size.
    many = np.resize(images, (BATCHES * SHARD * len(backends), *images.shape[1:]))
    executor.prepare(len(many))
    return {f"{INTEGER} on {len(backends)} GPUs": (lambda: executor.predict(many), len(many))}


def _candidates(program: Program, stack: ExitStack) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """What to measure, and the images of each; what must be closed goes on the stack."""
    import torch

    from hwsim.execute.cuda.engine import CudaMachine

    device = torch.device("cuda", 0)
    machine = CudaMachine(program, device)
    size = machine.default_batch()
    height, width, channels = program.image_size
    images = np.random.default_rng(0).integers(0, 256, (BATCHES * size, height, width, channels), dtype=np.uint8)
    pixels = torch.randn(FLOAT_BATCH, channels, height, width, device=device)
    model = float_model(program.network).to(device)
    replay = machine.recorded(size)

    def run_float() -> None:
        with torch.inference_mode():
            for _ in range(BATCHES):
                model(pixels)
        torch.cuda.synchronize(device)

    def run_replay() -> None:
        for _ in range(BATCHES):
            replay.graph.replay()
        torch.cuda.synchronize(device)

    candidates: dict[str, Callable[[], object]] = {
        INTEGER: lambda: machine.predict(images, None, None),
        REPLAYED: run_replay,
        FLOAT: run_float,
    }
    counts = {INTEGER: len(images), REPLAYED: len(images), FLOAT: BATCHES * FLOAT_BATCH}
    for name, (run, count) in _on_several(program, images, stack).items():
        candidates[name], counts[name] = run, count
    return candidates, counts
