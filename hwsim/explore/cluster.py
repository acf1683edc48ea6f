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
from typing import Any

import numpy as np

from golden.errors import HwsimError
from hwsim.execute.parallel import batches
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


def prepare(bench: Bench, recipe: Recipe) -> tuple[Program, Mapping[str, float], float | None]:
    """Task: calibrate and lower."""
    check_version(bench.code)
    return bench.prepare(recipe)


def correct(bench: Bench, program: tuple[Program, Any, Any], first: int, last: int, device: str) -> np.ndarray:
    """Task: which images of a shard are right."""
    return bench.correct(program[0], slice(first, last), device)


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
        # Making a GPU ready takes as long as thousands of images: one shard each.
        parts = batches(images, max(SHARD, -(-images // self.gpus)) if self.gpus else SHARD)
        start = time.perf_counter()
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
                yield self._collect(job, tasks, time.perf_counter() - start)

    def _collect(self, job: Job, tasks: list[Any], seconds: float) -> Record:
        try:
            program, *shards = self.ray.get(tasks)
        except self.ray.exceptions.RayTaskError as error:
            return failed(job, error.cause)
        except self.ray.exceptions.RayError as error:
            return failed(job, error)
        return finished(job, np.concatenate(shards), program[1], program[2], seconds)
