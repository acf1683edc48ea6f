"""Batches on all cores: one thread a core, each with a batch of its own.

The libraries inside run single-threaded meanwhile. Their own threads would meet at
a barrier after every small kernel, which on a busy machine costs ten times the work.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any, TypeVar

Result = TypeVar("Result")


# Threads of `map_batches` at most; None is one a core.
_most: ContextVar[int | None] = ContextVar("threads of map_batches", default=None)


def cores() -> int:
    """Threads that `map_batches` uses: one a core of the machine, or fewer within `threads_at_most`."""
    found = os.cpu_count() or 1
    most = _most.get()
    return found if most is None else min(found, most)


@contextmanager
def threads_at_most(count: int) -> Iterator[None]:
    """Within it `map_batches` uses at most so many threads; its results do not depend on how many."""
    token = _most.set(count)
    try:
        yield
    finally:
        _most.reset(token)


def batches(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` that cover ``count`` items."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def even_size(count: int, size: int) -> int:
    """Items a batch, at most `size`, such that the cores get about as many batches each."""
    rounds = -(-count // (size * cores()))
    return -(-count // (rounds * cores()))


@lru_cache(maxsize=1)
def _libraries(modules: int) -> Any:
    """The libraries with threads of their own.

    Looking for them takes as long as some images of a small network: it is done again when modules were imported.
    """
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


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
    limit = partial(_libraries(len(sys.modules)).limit, limits=1)
    parts = batches(count, size)
    results = []
    # OpenBLAS has one limit for the process, OpenMP one for each thread.
    with limit(), ThreadPoolExecutor(cores(), initializer=limit) as pool:
        for part, result in zip(parts, pool.map(function, parts), strict=True):
            results.append(result)
            if progress is not None:
                progress(part.stop - part.start)
    return results
