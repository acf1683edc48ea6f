"""Images on several executors at once, a process each: several GPUs of a machine.

The parent hands out batches of images through shared memory; whichever process is free takes the next, and is given
one more while it computes. Every image is computed alone, so the result does not depend on who computes it.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from types import TracebackType
from typing import Any

import numpy as np

from golden.errors import HwsimError
from hwsim.execute.parallel import batches
from hwsim.program import Program

# Images handed out at a time.
SHARD = 1024
# Parts in the memory of a process: one that it computes, and the next, which is copied meanwhile.
_ROOMS = 2


@dataclass
class _Worker:
    """A process, the way to it, and the memory that its images go through."""

    backend: str
    process: BaseProcess
    connection: Connection
    memory: SharedMemory


class ShardedExecutor:
    """A program on several executors; use it in a ``with`` statement, or close it.

    Parameters
    ----------
    program : Program
    backends : sequence of str
        Of `hwsim.execute.Executor`, one for each process.
    shard : int
        Images handed out at a time.

    Raises
    ------
    HwsimError
        An executor cannot be made in its process.
    """

    def __init__(self, program: Program, backends: Sequence[str], *, shard: int = SHARD) -> None:
        self.program, self.shard = program, shard
        context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        try:
            for backend in backends:
                memory = SharedMemory(create=True, size=_ROOMS * shard * math.prod(program.image_size))
                ours, theirs = context.Pipe()
                # A daemon, so that no process stays behind a parent that fails.
                process = context.Process(
                    target=_serve, args=(theirs, program, backend, memory.name, shard), daemon=True
                )
                self._workers.append(_Worker(backend, process, ours, memory))
                process.start()
                theirs.close()
            for worker in self._workers:
                _answer(worker)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ShardedExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes and free their memory."""
        workers, self._workers = self._workers, []
        for worker in workers:
            with suppress(OSError):
                worker.connection.close()
        for worker in workers:
            if worker.process.pid is not None:
                worker.process.join(10)
                if worker.process.is_alive():
                    worker.process.terminate()
                    worker.process.join()
            # Somebody may still look into the memory after an interrupt; it goes when they are done.
            with suppress(BufferError):
                worker.memory.close()
            with suppress(FileNotFoundError):
                worker.memory.unlink()

    def _part(self, images: int) -> int:
        """Images that are handed out at a time: few enough that every process gets some."""
        return min(self.shard, -(-images // len(self._workers)))

    def prepare(self, images: int, batch: int | None = None) -> None:
        """See `hwsim.execute.Executor.prepare`."""
        part = self._part(images)
        # The last part may be smaller than the others, and any process may get it.
        for count in sorted({part, images % part or part}):
            for worker in self._workers:
                _ask(worker, "prepare", count, batch)
            for worker in self._workers:
                _answer(worker)

    def predict(
        self, images: np.ndarray, *, batch: int | None = None, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """See `hwsim.execute.Executor.predict`; parts may be finished, and counted, in any order.

        Raises
        ------
        HwsimError
            An executor failed, or its process ended; the others stop.
        """
        if not len(images):
            raise HwsimError("there is no image to run")
        self.program.check_images(images)
        last = self.program.nodes[-1]
        logits = np.empty((len(images), math.prod(self.program.shape(last.name))), last.spec.output.dtype)
        parts = deque(batches(len(images), self._part(len(images))))
        lock, stopped = threading.Lock(), threading.Event()

        def following(busy: bool) -> slice | None:
            """The next part, for a busy process only where enough are left for all."""
            with lock:
                none = stopped.is_set() or len(parts) <= (len(self._workers) if busy else 0)
                return None if none else parts.popleft()

        def feed(worker: _Worker) -> None:
            rooms = [_images_in(worker.memory, self.program, self.shard, room) for room in range(_ROOMS)]
            under_way: deque[slice] = deque()
            given = 0
            try:
                while (part := following(bool(under_way))) is not None or under_way:
                    if part is not None:
                        count, room = part.stop - part.start, given % _ROOMS
                        np.copyto(rooms[room][:count], images[part])
                        _ask(worker, "predict", count, batch, room)
                        under_way.append(part)
                        given += 1
                    if part is None or len(under_way) == _ROOMS:
                        found = _answer(worker)
                        done = under_way.popleft()
                        logits[done] = found
                        with lock:
                            if progress is not None:
                                progress(done.stop - done.start)
            except BaseException:
                stopped.set()
                # The next request must not get the answer to this one.
                with suppress(HwsimError):
                    for _ in under_way:
                        _answer(worker)
                raise
            finally:
                del rooms

        with ThreadPoolExecutor(len(self._workers)) as pool:
            try:
                fed = [pool.submit(feed, worker) for worker in self._workers]
                # Not by joining the threads: an interrupted join takes a thread for ended that is not.
                wait(fed)
            finally:
                # An interrupt reaches this thread only. The others still take the answers that are under way, so that
                # every process waits for a request again.
                stopped.set()
        for future in fed:
            future.result()
        return logits


def _ask(worker: _Worker, what: str, count: int, batch: int | None, room: int = 0) -> None:
    """Send a request; raises `HwsimError` where the process has ended."""
    try:
        worker.connection.send((what, count, batch, room))
    except OSError:
        raise _ended(worker) from None


def _ended(worker: _Worker) -> HwsimError:
    return HwsimError(
        f"the process of executor {worker.backend} ended; run it alone to see why (--device {worker.backend})"
    )


def _answer(worker: _Worker) -> Any:
    """The next answer of a process.

    Raises
    ------
    HwsimError
        It failed, or ended.
    """
    try:
        found, value = worker.connection.recv()
    except (EOFError, OSError):
        raise _ended(worker) from None
    if not found:
        raise HwsimError(f"executor {worker.backend}: {value}")
    return value


def _images_in(memory: SharedMemory, program: Program, shard: int, room: int) -> np.ndarray:
    """Images of one of the rooms, uint8 [shard, H, W, C]."""
    offset = room * shard * math.prod(program.image_size)
    return np.ndarray((shard, *program.image_size), np.uint8, buffer=memory.buf, offset=offset)


def _serve(connection: Connection, program: Program, backend: str, name: str, shard: int) -> None:
    """Answer requests until the parent hangs up or one fails; an answer is (whether it worked, result or reason)."""
    # A terminal sends Ctrl-C to every process; the parent decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from hwsim.execute import Executor

    memory = SharedMemory(name)
    made: list[Executor] = []

    def make() -> None:
        made.append(Executor(program, backend))

    def work(what: str, count: int, batch: int | None, room: int) -> np.ndarray | None:
        if what == "prepare":
            made[0].prepare(count, batch)
            return None
        return made[0].predict(_images_in(memory, program, shard, room)[:count], batch=batch)

    try:
        going = _reply(connection, make)
        while going:
            try:
                request = connection.recv()
            except (EOFError, OSError):
                return
            going = _reply(connection, partial(work, *request))
    finally:
        with suppress(BufferError):
            memory.close()


def _reply(connection: Connection, work: Callable[[], Any]) -> bool:
    """Send what some work gives; False where it failed, or nobody listens any more."""
    found = True
    try:
        value = work()
    except HwsimError as error:
        found, value = False, str(error)
    except Exception as error:
        found, value = False, "".join(traceback.format_exception_only(error)).strip()
    try:
        connection.send((found, value))
    except OSError:
        return False
    return found
