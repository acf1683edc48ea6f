"""Timing on a machine that others use too: alternate, take medians, and say how far the runs lie apart."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

# Runs of one fixed computation that lie further apart than this share of the fastest: too noisy to compare.
NOISY = 0.15
# Names of figures that are exponents end in this.
EXPONENT = "exponent"


@dataclass(frozen=True)
class Table:
    """A result: rows for people, and the figures that are compared with those of the last run.

    Attributes
    ----------
    title, note : str
    columns : tuple of str
    rows : tuple of tuples
    figures : mapping of str to float
    machine : mapping
        Where and when it was measured, as `machine` says; parts leave it to the command.
    noise : float
        Of that machine meanwhile, as `noise` says.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    noise: float = 0.0


@dataclass(frozen=True)
class Times:
    """Seconds of every round: of the clock, and of the processor in all threads of this process."""

    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def alternate(candidates: Mapping[str, Callable[[], object]], rounds: int, pause: float = 0.0) -> dict[str, Times]:
    """Times of every candidate in every round; all run once a round, in turns forwards and backwards.

    Parameters
    ----------
    candidates : mapping of str to callable
    rounds : int
        Beside one that warms up and is not counted.
    pause : float
        Seconds before every run, in which threads of the one before that still spin fall asleep.
    """
    times = {name: Times() for name in candidates}
    for count in range(rounds + 1):
        for name in list(candidates)[:: 1 if count % 2 else -1]:
            time.sleep(pause)
            start, used = time.perf_counter(), time.process_time()
            candidates[name]()
            if count:
                times[name].clock.append(time.perf_counter() - start)
                times[name].processor.append(time.process_time() - used)
    return times


def median_and_spread(values: list[float]) -> tuple[float, float]:
    """The median, and half the distance of the quartiles as a share of it."""
    middle = statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (middle, middle, middle)
    return middle, (high - low) / 2 / middle


def ratios(seconds: list[float], others: list[float]) -> tuple[float, float]:
    """How many times faster than others, round by round: median and spread."""
    return median_and_spread([other / own for own, other in zip(seconds, others, strict=True)])


def noise() -> float:
    """How far runs of one fixed computation lie apart: the slowest tenth against the fastest."""
    values = np.arange(1 << 20, dtype=np.float64)

    def run() -> float:
        start = time.perf_counter()
        np.sqrt(values).sum()
        return time.perf_counter() - start

    times = sorted(run() for _ in range(60))
    return times[-6] / times[0] - 1


def peak_memory() -> float:
    """Largest resident memory that this process has had, in MiB."""
    import resource

    # Not that of the process it was started from, which getrusage(2) would count: proc(5).
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    # Kilobytes, on macOS bytes: getrusage(2).
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def machine() -> dict[str, Any]:
    """Date, processor and versions."""
    import importlib.metadata

    model = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    versions = {}
    for package in ("numpy", "numba", "torch", "timm", "onnxruntime", "apytypes"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    from hwsim.execute.integer_gemm import available

    best = available()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": model,
        "cores": os.cpu_count(),
        "instructions": best[0].name if best else "none (float BLAS)",
        "python": platform.python_version(),
        "versions": versions,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def growth_exponent(sizes: list[float], values: list[float]) -> float:
    """Slope of the logarithms: 1 is proportional, 2 quadratic."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
