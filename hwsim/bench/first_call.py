"""How long a user waits: for the help, and for the first images of an evaluation."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

from golden.errors import HwsimError
from hwsim.bench import WAITING
from hwsim.bench.measure import Table
from hwsim.execute.cuda.availability import why_not

HELP_LIMIT, EVALUATION_LIMIT = 0.3, 3.0

_EVALUATE = """
from hwsim.cli.source import evaluation_images, open_program
from hwsim.execute import Executor
program = open_program(None)
Executor(program, "{backend}").predict(evaluation_images(program, None, 32).images)
"""
# Where each executor looks for its compiled kernels.
_CACHES = {"numba": "NUMBA_CACHE_DIR", "cuda": "TRITON_CACHE_DIR"}


def first_call(rounds: int) -> Table:
    """Seconds from the command to the help, and to the first 32 images with the kernels compiled before and not.

    On a GPU too, where there is one.
    """
    hwsim = "import sys; from hwsim.cli import main; sys.argv[1:] = ['--help']; main(['--help'])"
    measured: list[tuple[str, float | None, list[tuple[float, float]]]]
    measured = [("hwsim --help", HELP_LIMIT, [_seconds(hwsim) for _ in range(rounds)])]
    for backend, variable in _CACHES.items():
        gpu = backend == "cuda"
        if gpu and why_not() is not None:
            continue
        images, evaluate = f"first 32 images{' on the GPU' if gpu else ''}", _EVALUATE.format(backend=backend)
        _seconds(evaluate)  # calibrates the network and compiles its kernels
        limit = None if gpu else EVALUATION_LIMIT
        measured.append((f"{images}, kernels on disk", limit, [_seconds(evaluate) for _ in range(rounds)]))
        with tempfile.TemporaryDirectory() as folder:
            anew = [_seconds(evaluate, {variable: folder})]
        measured.append((f"{images}, kernels compiled anew", None, anew))
    rows, figures = [], {}
    for what, limit, times in measured:
        clock, processor = (statistics.median(part) for part in zip(*times, strict=True))
        rows.append((what, f"{clock:.2f}", f"{processor:.2f}", "" if limit is None else f"{limit}"))
        figures[f"{what}, processor seconds"] = processor
    return Table(
        "First call",
        ("what", "seconds", "processor seconds", "limit"),
        tuple(rows),
        f"A new process each, of the embedded network; median of {rounds}, compiled anew once.",
        figures,
    )


def _seconds(program: str, environment: dict[str, str] | None = None) -> tuple[float, float]:
    """Seconds of the clock and of the processor, threads waiting as in our commands."""
    environment = {**dict([WAITING]), **os.environ, **(environment or {})}
    start, before = time.perf_counter(), os.times()
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    if result.returncode:
        raise HwsimError(f"a measured command failed: {result.stderr.strip().splitlines()[-1]}")
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, processor
