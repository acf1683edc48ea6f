"""Whole networks on a GPU: the integer program against the same network in float PyTorch on the same GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from golden.errors import HwsimError
from hwsim.bench.measure import Table, alternate, median_and_spread, ratios
from hwsim.bench.networks import FLOAT, float_model
from hwsim.execute.cuda.availability import why_not
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
        candidates, images = _candidates(program)
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
        f"integer program takes uint8 images from the main memory and gives its logits back; the others have their "
        f"images on the GPU. Float batches of {FLOAT_BATCH} images, integer ones as many as the executor takes by "
        f"default. PyTorch {torch.__version__}, {BATCHES} batches a measurement.",
        figures,
    )


def _candidates(program: Program) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """What to measure, and the images of each."""
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

    return (
        {INTEGER: lambda: machine.predict(images, None, None), REPLAYED: run_replay, FLOAT: run_float},
        {INTEGER: len(images), REPLAYED: len(images), FLOAT: BATCHES * FLOAT_BATCH},
    )
