"""Batches on all cores: one thread a core, each with a batch of its own.

The libraries inside run single-threaded meanwhile. Their own threads would meet at
a barrier after every small kernel, which on a busy machine costs ten times the work.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def batches(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` that cover ``count`` items."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def map_batches(
    function: Callable[[slice], Result], count: int, size: int, progress: Callable[[int], None] | None = None
) -> list[Result]:
    """``function`` of every batch, in order; it must be safe to call from several threads.

    Parameters
    ----------
    function : callable
        Takes a slice of the items; the work in it releases the interpreter lock.
    count, size : int
        Items, and items a batch at most.
    progress : callable, optional
        Called in this thread with the number of items of each batch, in order.
    """
    from threadpoolctl import threadpool_limits

    parts = batches(count, size)
    results = []
    # OpenBLAS has one limit for the process, OpenMP one for each thread.
    with (
        threadpool_limits(limits=1),
        ThreadPoolExecutor(os.cpu_count(), initializer=threadpool_limits, initargs=(1,)) as pool,
    ):
        for part, result in zip(parts, pool.map(function, parts), strict=True):
            results.append(result)
            if progress is not None:
                progress(part.stop - part.start)
    return results
