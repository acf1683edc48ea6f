"""Images on several executors at once, a process each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import pytest

from golden.errors import HwsimError
from hwsim.execute import Executor, sharding
from hwsim.execute.sharding import ShardedExecutor
from hwsim.program import Program


def test_images_on_several_processes_give_the_codes_of_one(small_program: Program, small_images: np.ndarray) -> None:
    expected = Executor(small_program, "reference").predict(small_images)
    done: list[int] = []
    with ShardedExecutor(small_program, ("reference", "numba"), shard=5) as executor:
        executor.prepare(len(small_images))
        assert np.array_equal(executor.predict(small_images, batch=2, progress=done.append), expected)
        assert sum(done) == len(small_images) and max(done) <= 5
        # Fewer images than processes, and memory that holds those of the last call.
        assert np.array_equal(executor.predict(small_images[3:4]), expected[3:4])
        with pytest.raises(HwsimError, match="no image"):
            executor.predict(small_images[:0])
        with pytest.raises(HwsimError, match="takes uint8 images"):
            executor.predict(small_images[:, :8])
        for worker in executor._workers[1:]:
            worker.process.terminate()
            worker.process.join()
        with pytest.raises(HwsimError, match="process of executor numba ended"):
            executor.predict(small_images)


def test_what_is_prepared_is_what_runs(monkeypatch: pytest.MonkeyPatch, small_program: Program) -> None:
    """A size that was not prepared would be compiled while the clock runs."""
    asked: dict[str, set[int]] = {}

    def ask(worker: Any, what: str, count: int = 0, batch: int | None = None, room: int = 0) -> None:
        if what != "settle":
            asked.setdefault(what, set()).add(count)

    with ShardedExecutor(small_program, ("reference", "reference"), shard=5) as executor:
        monkeypatch.setattr(sharding, "_ask", ask)
        monkeypatch.setattr(sharding, "_answer", lambda worker, request: 0)
        for count, expected in ((24, {5, 4}), (6, {3}), (1, {1}), (7, {4, 3})):
            asked.clear()
            executor.prepare(count)
            executor.predict(np.zeros((count, 16, 16, 3), np.uint8))
            assert asked == {"prepare": expected, "predict": expected}


def test_a_callback_that_fails_leaves_no_answer_for_the_next_call(
    small_program: Program, small_images: np.ndarray
) -> None:
    """Each process has a part under way, and one in front of it, when the callback fails."""
    expected = Executor(small_program, "reference").predict(small_images)

    def failing(count: int) -> None:
        raise ValueError("enough")

    with ShardedExecutor(small_program, ("reference", "reference"), shard=2) as executor:
        for _ in range(3):
            with pytest.raises(ValueError, match="enough"):
                executor.predict(small_images, progress=failing)
            assert np.array_equal(executor.predict(small_images), expected)


def test_a_busy_process_is_given_one_more_part_and_no_last_one(
    monkeypatch: pytest.MonkeyPatch, small_program: Program
) -> None:
    """One process of two answers at once, the other waits until the first has done all that it may."""
    asked: dict[str, int] = {"reference": 0, "numba": 0}
    full, free = threading.Event(), threading.Event()

    def ask(worker: Any, what: str, count: int = 0, batch: int | None = None, room: int = 0) -> str:
        if what == "settle":
            return what
        asked[worker.backend] += 1
        if asked["numba"] == 2:
            full.set()
        if asked["reference"] == 6:
            free.set()
        return what

    def answer(worker: Any, request: str) -> int:
        assert request == "settle" or (free if worker.backend == "numba" else full).wait(30)
        return 0

    with ShardedExecutor(small_program, ("reference", "numba"), shard=3) as executor:
        monkeypatch.setattr(sharding, "_ask", ask)
        monkeypatch.setattr(sharding, "_answer", answer)
        # Eight parts: two for the process that waits, six for the other one.
        executor.predict(np.zeros((24, 16, 16, 3), np.uint8))
    assert asked == {"reference": 6, "numba": 2}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as on a terminal: what runs in the background of a script ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_nothing_behind(small_program: Program, small_images: np.ndarray) -> None:
    """Ctrl-C reaches the processes too, which take no notice; the caller's thread waits for those that feed them."""
    expected = Executor(small_program, "reference").predict(small_images)
    with ShardedExecutor(small_program, ("reference", "reference"), shard=2) as executor:
        for worker in executor._workers:
            assert worker.process.pid is not None
            os.kill(worker.process.pid, signal.SIGINT)
        done: list[int] = []

        def interrupt(count: int) -> None:
            done.append(count)
            if len(done) == 2:
                main = threading.main_thread().ident
                assert main is not None
                signal.pthread_kill(main, signal.SIGINT)
                # No part is handed out meanwhile, so that some are left.
                time.sleep(0.5)

        threads = threading.active_count()
        with pytest.raises(KeyboardInterrupt):
            executor.predict(small_images, progress=interrupt)
        assert threading.active_count() == threads
        assert sum(done) < len(small_images)
        assert np.array_equal(executor.predict(small_images), expected)


def test_closing_goes_on_where_somebody_looks_into_the_memory(small_program: Program) -> None:
    executor = ShardedExecutor(small_program, ("reference", "reference"), shard=2)
    workers = list(executor._workers)
    view = np.ndarray(8, np.uint8, buffer=workers[0].memory.buf)
    executor.close()
    assert not any(worker.process.is_alive() for worker in workers)
    for worker in workers:
        with pytest.raises(FileNotFoundError):
            SharedMemory(worker.memory.name)
    del view
    executor.close()
    workers[0].memory.close()


def test_an_oserror_of_the_executor_itself_is_reported(monkeypatch: pytest.MonkeyPatch, small_program: Program) -> None:
    """Only one of the connection means that the parent has hung up."""

    class Full:
        def __init__(self, program: Program, backend: str) -> None:
            if backend == "none":
                raise OSError(12, "cannot allocate")

        def prepare(self, count: int, batch: int | None) -> None:
            raise OSError(28, "no space left")

    monkeypatch.setattr("hwsim.execute.Executor", Full)
    # _serve runs in this process, in a thread: signals belong to the main one.
    monkeypatch.setattr(sharding.signal, "signal", lambda *_: None)
    memory = SharedMemory(create=True, size=16)
    try:
        for backend, said in (("none", "cannot allocate"), ("some", "no space left")):
            ours, theirs = multiprocessing.Pipe()
            thread = threading.Thread(target=sharding._serve, args=(theirs, small_program, backend, memory.name, 1))
            thread.start()
            if backend == "some":
                assert ours.recv() == (0, True, None)
                ours.send((7, "prepare", 3, None, 0))
            number, worked, reason = ours.recv()
            thread.join()
            assert not worked and said in reason and number == (7 if backend == "some" else 0)
            theirs.close()
            ours.close()
    finally:
        memory.close()
        memory.unlink()


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_preparation_leaves_no_answer_for_the_next_call(
    small_program: Program, small_images: np.ndarray
) -> None:
    """Compiling takes long enough for Ctrl-C."""
    expected = Executor(small_program, "reference").predict(small_images)
    with ShardedExecutor(small_program, ("reference", "reference"), shard=5) as executor:
        processes = [worker.process.pid for worker in executor._workers]
        for process in processes:
            assert process is not None
            os.kill(process, signal.SIGSTOP)
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            executor.prepare(len(small_images))
        for process in processes:
            assert process is not None
            os.kill(process, signal.SIGCONT)
        for _ in range(3):
            assert np.array_equal(executor.predict(small_images), expected)


def test_calls_of_several_threads_do_not_mix(small_program: Program, small_images: np.ndarray) -> None:
    expected = Executor(small_program, "reference").predict(small_images)
    with ShardedExecutor(small_program, ("reference", "reference"), shard=2) as executor, ThreadPoolExecutor(2) as pool:
        found = list(pool.map(executor.predict, (small_images, small_images[::-1])))
    assert np.array_equal(found[0], expected)
    assert np.array_equal(found[1], expected[::-1])


def test_a_refusal_does_not_end_the_process(
    small_program: Program, small_images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as too little memory for a batch: the next call may have a smaller one."""
    expected = Executor(small_program, "reference").predict(small_images)
    plain = Executor.predict

    def refuse(self: Executor, images: np.ndarray, **options: Any) -> np.ndarray:
        if options["batch"] == 24:
            raise HwsimError("batch: too large; lower --batch")
        return plain(self, images, **options)

    monkeypatch.setattr(Executor, "predict", refuse)
    memory = SharedMemory(create=True, size=small_images[:2].nbytes * 2)
    ours, theirs = multiprocessing.Pipe()
    monkeypatch.setattr(sharding.signal, "signal", lambda *_: None)
    thread = threading.Thread(target=sharding._serve, args=(theirs, small_program, "reference", memory.name, 2))
    thread.start()
    try:
        sharding._images_in(memory, small_program, 2, 1)[:] = small_images[:2]
        assert ours.recv() == (0, True, None)
        ours.send((1, "predict", 2, 24, 1))
        assert ours.recv() == (1, False, "batch: too large; lower --batch")
        ours.send((2, "predict", 2, 1, 1))
        number, worked, logits = ours.recv()
        assert (number, worked) == (2, True) and np.array_equal(logits, expected[:2])
    finally:
        ours.close()
        thread.join()
        memory.close()
        memory.unlink()


def test_too_little_shared_memory_is_refused(monkeypatch: pytest.MonkeyPatch, small_program: Program) -> None:
    """Not by a signal, later."""
    made: list[str] = []

    def full(file: int, offset: int, size: int) -> None:
        made.append(SharedMemory.__name__)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(HwsimError, match=r"shared memory, 0 MiB each, and /dev/shm has not enough \(No space left"):
        ShardedExecutor(small_program, ("reference",), shard=2)
    assert made


def test_no_executor_and_a_closed_one_are_refused(small_program: Program, small_images: np.ndarray) -> None:
    with pytest.raises(HwsimError, match="name at least one"):
        ShardedExecutor(small_program, ())
    executor = ShardedExecutor(small_program, ("reference",), shard=2)
    executor.close()
    for call in (lambda: executor.predict(small_images), lambda: executor.prepare(3)):
        with pytest.raises(HwsimError, match="are closed; make a new ShardedExecutor"):
            call()


def test_many_images_come_in_several_parts_for_each_process(small_program: Program) -> None:
    with ShardedExecutor(small_program, ("reference", "reference"), shard=1024) as executor:
        sizes = {count: executor._part(count) for count in (1, 100, 600, 2048, 3000, 50_000)}
    assert sizes == {1: 1, 100: 50, 600: 256, 2048: 256, 3000: 375, 50_000: 1024}


def test_an_executor_that_cannot_be_made_is_reported(small_program: Program) -> None:
    with pytest.raises(HwsimError, match="executor tpu: unknown executor 'tpu'"):
        ShardedExecutor(small_program, ("tpu",))
