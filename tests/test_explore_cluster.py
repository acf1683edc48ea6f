"""Exploration on a Ray cluster: the same points, and workers that are killed."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hwsim.execute.parallel import map_batches, threads_at_most
from hwsim.explore.bench import Bench
from hwsim.explore.records import Record, Store
from hwsim.explore.search import at_once
from hwsim.explore.space import recipe_of
from hwsim.explore.sweep import Job, Local, sweep

# Of processes that must find this package where the tests do, and of a Ray cluster of their own.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(__file__).parent.parent),
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


def threads() -> int:
    """How many threads batches run on."""

    def batch(part: slice) -> int:
        time.sleep(0.05)
        return threading.get_ident()

    return len(set(map_batches(batch, 8, 1)))


def test_batches_run_on_as_many_threads_as_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert threads() == 4
    with threads_at_most(2):
        assert threads() == 2
    with threads_at_most(16):
        assert threads() == 4


@dataclass(frozen=True)
class Deadly(Bench):
    """The worker that takes the first point dies, once."""

    marker: str = ""

    def prepare(self, recipe: Any) -> Any:
        if not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(recipe)

    def correct(self, program: Any, part: slice, device: str = "cpu") -> np.ndarray:
        import ray

        with Path(self.marker).open("a") as file:
            file.write(f"{device} {len(ray.get_gpu_ids())} {threads()}\n")
        return super().correct(program, part, device)


@pytest.fixture
def ray_cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra cluster)")
    # One GPU by name: shards are sent to it, and find that there is none.
    ray.init(num_cpus=2, num_gpus=1, log_to_driver=False, include_dashboard=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_cluster_gives_the_same_and_survives_a_worker(
    bench: Bench, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwsim.explore import cluster
    from hwsim.identity import code_digest

    monkeypatch.setattr(cluster, "SHARD", 40)  # two shards a point
    deadly = Deadly(bench.graph, bench.calibration, bench.evaluation, code_digest(), marker=str(tmp_path / "died"))
    points = [{"weight_bits": bits} for bits in (4, 8)] + [{"attention": "twin"}]
    local = sweep(replace(bench, code=code_digest()), at_once(points), Store(tmp_path / "a", "s"), Local())
    monkeypatch.setattr(cluster, "time", None)  # seconds are what the tasks took by their clocks
    there = sweep(deadly, at_once(points), Store(tmp_path / "b", "s"), cluster.Cluster("local"))
    assert set((tmp_path / "died").read_text().splitlines()) == {"auto 1 1"}
    assert there == local
    assert [record.seconds > 0 for record in there] == [not record.error for record in there]
    (tmp_path / "died").write_text("")
    monkeypatch.setattr(cluster.Cluster, "gpus", 0)
    assert sweep(deadly, at_once(points[:1]), Store(tmp_path / "c", "s"), cluster.Cluster("local")) == local[:1]
    assert set((tmp_path / "died").read_text().splitlines()) == {"cpu 0 1"}
    jobs = [Job(Record("key", {}), recipe_of({}))]
    (old,) = cluster.Cluster("local").measure(replace(bench, code="older"), jobs)
    assert "has another version of vit-hwsim" in old.error


@pytest.fixture
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """Address and process of a head node of two CPUs, as `ray start` makes it."""
    pytest.importorskip("ray", reason="Ray is not installed (extra cluster)")
    psutil = pytest.importorskip("psutil")
    with socket.socket() as free, tempfile.TemporaryDirectory(prefix="ray") as folder:  # Ray wants short paths
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = ["ray", "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--port", str(port)]
        command += ["--num-cpus", "2", "--num-gpus", "0", "--include-dashboard", "false", "--temp-dir", folder]
        program = "import sys; from ray.scripts.scripts import main; sys.argv[0] = 'ray'; main()"
        with (tmp_path_factory.mktemp("ray") / "log").open("w+") as log:
            head = psutil.Popen([sys.executable, "-c", program, *command[1:]], stdout=log, stderr=log, env=ENVIRONMENT)
            try:
                for _ in range(600):
                    log.seek(0)
                    if "Ray runtime started" in (said := log.read()):
                        break
                    assert head.poll() is None, said
                    time.sleep(0.1)
                yield f"127.0.0.1:{port}", head
            finally:
                started = [head, *head.children(recursive=True)] if head.is_running() else []
                for process in started:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                psutil.wait_procs(started, timeout=10)


def test_the_command_on_a_cluster_that_loses_a_worker(tmp_path: Path, ray_head: tuple[str, Any]) -> None:
    """The command joins a cluster by its address; the process of a shard is killed from outside."""
    address, head = ray_head
    command = [sys.executable, "-m", "hwsim", "explore", "--images", "8", "--on-images", "300", "--vary"]
    command += ["weight_bits=4", "--against", "constant_bytes", "-o"]
    there = subprocess.Popen(
        [*command, "there", "--ray", address], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    killed = 0
    while there.poll() is None:
        for process in head.children(recursive=True):
            with suppress(Exception):  # it may end meanwhile
                if not killed and "ray::correct" in " ".join(process.cmdline()):
                    process.kill()
                    killed = process.pid
        time.sleep(0.02)
    said, _ = there.communicate()
    assert there.returncode == 0, said
    assert killed
    subprocess.run([*command, "here"], cwd=tmp_path, env=ENVIRONMENT, check=True, capture_output=True)
    frames = [
        pd.read_parquet(tmp_path / name / "embedded.parquet").drop(columns="seconds") for name in ("there", "here")
    ]
    pd.testing.assert_frame_equal(*frames)
