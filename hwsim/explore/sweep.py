"""Run a search: measure what is not known yet, keep everything at once."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from golden.errors import HwsimError
from hwsim.explore.bench import Bench
from hwsim.explore.records import GOES_ON, TOP1, Record, Store, loss_of, pack
from hwsim.explore.search import Proposals
from hwsim.explore.space import Point, effective, recipe_of
from hwsim.identity import program_digest
from hwsim.program import Program
from hwsim.quantize.recipe import Recipe

# The only field of a point that is a finished program.
PROGRAM = "program"
# Every further point would meet them too.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})


@dataclass(frozen=True)
class Job:
    """A point to measure; the record lacks its figures yet."""

    record: Record
    recipe: Recipe


class Backend(Protocol):
    """Where points are measured."""

    def measure(self, bench: Bench, jobs: Sequence[Job]) -> Iterator[Record]:
        """Records of the jobs in any order, each as soon as it is there; one that fails has its error, see `failed`."""


class Local:
    """One point after the other in this process; each uses all cores.

    Parameters
    ----------
    device : str
        Where programs run, see `hwsim.execute.devices.choose`; all give the same.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def measure(self, bench: Bench, jobs: Sequence[Job]) -> Iterator[Record]:
        """See `Backend.measure`."""
        for job in jobs:
            start = time.perf_counter()
            try:
                program, costs, fake = bench.prepare(job.recipe)
                correct = bench.correct(program, slice(None), self.device)
            except Exception as error:  # a point that fails must not end the sweep
                yield failed(job, error)
            else:
                yield finished(job, correct, costs, fake, time.perf_counter() - start)


def measure_program(bench: Bench, store: Store, name: str, program: Program, device: str = "cpu") -> Record:
    """Measure a finished program as a point beside those of recipes; read where the store has it.

    One that fails has its error, as a point does.

    Parameters
    ----------
    bench : Bench
        Its calibration images play no part.
    store : Store
    name : str
        What the point is called: its field ``program``.
    program : Program
    device : str
        See `Local`.

    Raises
    ------
    HwsimError
        The program is of another network or image size, or nothing can be written.
    """
    graph = bench.graph
    if (program.network, program.image_size) != (graph.name, graph.image_size):
        raise HwsimError(
            f"{name} is a program of {program.network} with images of {program.image_size}, the exploration is of "
            f"{graph.name} with {graph.image_size}; explore that network"
        )
    key = store.key(f"program {program_digest(program)}")
    known = store.read(key)
    if known is not None:
        return replace(known, point={PROGRAM: name})
    start = time.perf_counter()
    record = Record(key, {PROGRAM: name}, program.recipe)
    try:
        correct, costs = bench.correct(program, slice(None), device), bench.costs(program)
    except Exception as error:  # as of a point
        record = _without_figures(record, error)
    else:
        record = _with_figures(record, correct, costs, None, time.perf_counter() - start)
    store.write(record)
    return record


def finished(
    job: Job, correct: np.ndarray, costs: Mapping[str, float], fake_quant_top1: float | None, seconds: float
) -> Record:
    """The record of a measured job."""
    return _with_figures(job.record, correct, costs, fake_quant_top1, seconds)


def failed(job: Job, error: BaseException) -> Record:
    """The record of a job that has no figures.

    Raises
    ------
    HwsimError
        Nothing can be written; those that are finished are kept.
    """
    return _without_figures(job.record, error)


def _with_figures(
    record: Record, correct: np.ndarray, costs: Mapping[str, float], fake_quant_top1: float | None, seconds: float
) -> Record:
    return replace(
        record,
        correct=pack(correct),
        images=len(correct),
        costs=dict(costs),
        fake_quant_top1=fake_quant_top1,
        seconds=seconds,
    )


def _without_figures(record: Record, error: BaseException) -> Record:
    causes = list(_causes(error))
    text = str(error) if isinstance(error, HwsimError) else f"{type(error).__name__}: {error}"
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            said = text if isinstance(error, HwsimError) else f"nothing can be written ({cause.strerror}); free space"
            raise HwsimError(f"{said}; {GOES_ON}") from None
    passing = any(isinstance(cause, _passing_kinds()) and not _is_of_a_task(cause) for cause in causes)
    return replace(record, error=text or type(error).__name__, passing=passing)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from, also where ``from None`` hides them from the user."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _passing_kinds() -> tuple[type[BaseException], ...]:
    """Errors of the machine: another run may not meet them. Packages that are not loaded have raised none."""
    kinds: list[type[BaseException]] = [OSError, MemoryError, ImportError]
    if "torch" in sys.modules:
        kinds.append(sys.modules["torch"].OutOfMemoryError)
    if "ray" in sys.modules:
        kinds.append(sys.modules["ray"].exceptions.RayError)
    return tuple(kinds)


def _is_of_a_task(error: BaseException) -> bool:
    """Ray's wrapper of what a task raised: that decides, not the wrapper."""
    return "ray" in sys.modules and isinstance(error, sys.modules["ray"].exceptions.RayTaskError)


def sweep(
    bench: Bench,
    proposals: Proposals,
    store: Store,
    backend: Backend,
    objectives: Sequence[str] = (TOP1,),
    started: Callable[[int], None] = lambda count: None,
    progress: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Measure all points that a search proposes; those in the store are read.

    Parameters
    ----------
    bench : Bench
    proposals : Proposals
    store : Store
    backend : Backend
    objectives : sequence of str
        What a search judges points by: "top1" and names of costs, see `hwsim.explore.records.loss_of`.
    started : callable
        Called with the number of different points of each batch.
    progress : callable
        Called with every record.

    Returns
    -------
    list of Record
        In the order proposed, each once; points that differ from an earlier one in nothing that matters are left out.

    Raises
    ------
    HwsimError
        Nothing can be written; the records of those that are finished are kept.
    """
    known: dict[str, Record] = {}
    order: dict[str, None] = {}
    try:
        points = next(proposals)
        while True:
            batch = [_proposed(store, point) for point in points]
            keys = [one.key if isinstance(one, Record) else one.record.key for one in batch]
            order |= dict.fromkeys(keys)
            different = {key: one for key, one in zip(keys, batch, strict=True) if key not in known}
            started(len(different))
            missing = []
            for key, one in different.items():
                record = one if isinstance(one, Record) else store.read(key)
                if record is not None:
                    known[key] = record
                    progress(record)
                elif isinstance(one, Job):
                    missing.append(one)
            for record in backend.measure(bench, missing):
                store.write(record)
                known[record.key] = record
                progress(record)
            points = proposals.send([_scores(known[key], objectives) for key in keys])
    except StopIteration:
        return [known[key] for key in order]


def _proposed(store: Store, point: Point) -> Job | Record:
    """A job to measure, or the record of a point that makes no recipe."""
    point = dict(effective(point))
    try:
        recipe = recipe_of(point)
    except HwsimError as error:
        return Record(store.key(point), point, error=str(error))
    return Job(Record(store.key(recipe), point, recipe.name), recipe)


def _scores(record: Record, objectives: Sequence[str]) -> tuple[float, ...] | None:
    if record.error:
        return None
    for name in objectives:
        if name != TOP1 and name not in record.costs:
            raise HwsimError(f"there is no cost {name!r}; choose among {', '.join(record.costs)}")
    return tuple(loss_of(record, name) for name in objectives)
