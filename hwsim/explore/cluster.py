"""Points on a Ray cluster: a task calibrates a point, further tasks run shards of the evaluation images.

Every task computes the same integers as this process would. A worker that is lost costs its task, which Ray runs
again elsewhere.
"""

from __future__ import annotations

import logging
import platform
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from golden.errors import HwsimError
from hwsim.execute.parallel import batches, threads_at_most
from hwsim.explore.bench import Bench
from hwsim.explore.records import Record
from hwsim.explore.sweep import Job, failed, finished
from hwsim.program import Program
from hwsim.quantize.recipe import Recipe

SHARD = 2048


def check_version(code: str) -> None:
    """Refuse a worker whose package is not this one."""
    from hwsim.identity import code_digest

    if code_digest() != code:
        raise HwsimError(
            f"the worker on {platform.node()} has another version of vit-hwsim; install the same on every machine"
        )


def check_reachable(address: str) -> None:
    """Is there somebody at HOST:PORT? Ray itself would go on trying for minutes.

    Raises
    ------
    OSError
        Nobody answers within five seconds.
    ValueError
        The port is not a number.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=5).close()


def assigned_cpus() -> int:
    """CPUs that Ray gave this task; the other cores of the machine are for its other tasks."""
    import ray

    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


@dataclass(frozen=True)
class Prepared:
    """What the task of a recipe gives, see `hwsim.explore.bench.Bench.prepare`, and the seconds that it took."""

    program: Program
    costs: Mapping[str, float]
    fake_quant_top1: float | None
    seconds: float


def prepare(bench: Bench, recipe: Recipe) -> Prepared:
    """Task: calibrate and lower."""
    start = time.perf_counter()
    check_version(bench.code)
    with threads_at_most(assigned_cpus()):
        made = bench.prepare(recipe)
    return Prepared(*made, time.perf_counter() - start)


def correct(bench: Bench, prepared: Prepared, first: int, last: int, device: str) -> tuple[np.ndarray, float]:
    """Task: which images of a shard are right, and the seconds that it took."""
    start = time.perf_counter()
    with threads_at_most(assigned_cpus()):
        right = bench.correct(prepared.program, slice(first, last), device)
    return right, time.perf_counter() - start


class Cluster:
    """Ray as the place where points are measured.

    Parameters
    ----------
    address : str
        Of the head node, or "auto"; "local" starts one on this machine.
    retries : int
        How often a task whose worker was lost runs again.

    Raises
    ------
    HwsimError
        Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str, *, retries: int = 3) -> None:
        try:
            import ray
        except ImportError:
            raise HwsimError("Ray is not installed; pip install 'vit-hwsim[cluster]'") from None
        self.ray: Any = ray
        self.retries = retries
        if ray.is_initialized():
            return
        try:
            check_reachable(address)
            ray.init(address=None if address == "local" else address, logging_level=logging.ERROR, log_to_driver=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise HwsimError(
                f"--ray {address}: no cluster answers ({str(error).splitlines()[0]}); start one with "
                "`ray start --head`, or leave --ray out"
            ) from None

    @property
    def gpus(self) -> int:
        """GPUs of the cluster."""
        return int(self.ray.cluster_resources().get("GPU", 0))

    def measure(self, bench: Bench, jobs: Sequence[Job]) -> Iterator[Record]:
        """See `hwsim.explore.sweep.Backend.measure`."""
        ray = self.ray
        # A recipe is calibrated on CPUs everywhere, so that its floats, and with them its program, are those of a
        # local run. Programs give the same integers on a GPU: where the cluster has some, they run there.
        device, needs = ("auto", {"num_gpus": 1}) if self.gpus else ("cpu", {"num_cpus": 1})
        prepare_task = ray.remote(max_retries=self.retries, num_cpus=1)(prepare)
        correct_task = ray.remote(max_retries=self.retries, **needs)(correct)
        place = ray.put(bench)
        images = len(bench.evaluation.images)
        # Ray ends a process after each task on a GPU, and making a GPU ready takes as long as hundreds of thousands of
        # images: as few shards as keep all GPUs at work.
        shards_each = max(1, self.gpus // max(1, len(jobs)))
        parts = batches(images, max(SHARD, -(-images // shards_each)) if self.gpus else SHARD)
        waiting: dict[Any, tuple[Job, list[Any]]] = {}
        left: dict[str, int] = {}
        for job in jobs:
            program = prepare_task.remote(place, job.recipe)
            shards = [correct_task.remote(place, program, part.start, part.stop, device) for part in parts]
            left[job.record.key] = len(shards)
            waiting |= dict.fromkeys(shards, (job, [program, *shards]))
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            job, tasks = waiting.pop(done[0])
            key = job.record.key
            left[key] -= 1
            if left[key] == 0:
                yield self._collect(job, tasks)

    def _collect(self, job: Job, tasks: list[Any]) -> Record:
        try:
            prepared, *shards = self.ray.get(tasks)
        except self.ray.exceptions.RayTaskError as error:
            return failed(job, error.cause)
        except self.ray.exceptions.RayError as error:
            return failed(job, error)
        # What was spent on the point, wherever and whenever: not the time that it waited for others.
        seconds = prepared.seconds + sum(spent for _, spent in shards)
        right = np.concatenate([part for part, _ in shards])
        return finished(job, right, prepared.costs, prepared.fake_quant_top1, seconds)
