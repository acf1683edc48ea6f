"""Images on several executors at once, a process each: several GPUs of a machine.

The parent hands out batches of images through shared memory; whichever process is free takes the next, and is given
one more while it computes. Every image is computed alone, so the result does not depend on who computes it.
"""

from __future__ import annotations

import math
import multiprocessing
import os
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
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from golden.errors import HwsimError
from hwsim.execute.parallel import batches
from hwsim.program import Program

# Images handed out at a time: at most, and where there are enough for all.
SHARD, SMALLEST_SHARD = 1024, 256
# Parts of a call for each process, where they do not get too small: the copying of all but the first is hidden.
_PARTS = 4
# Parts in the memory of a process: one that it computes, and the next, which is copied meanwhile.
_ROOMS = 2


@dataclass
class _Worker:
    """A process, the way to it, the memory that its images go through, and the number of the last request."""

    backend: str
    process: BaseProcess
    connection: Connection
    memory: SharedMemory
    request: int = 0


class ShardedExecutor:
    """A program on several executors; use it in a ``with`` statement, or close it.

    Calls of several threads run one after the other.

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
        No executor, one that cannot be made in its process, or too little shared memory.
    """

    def __init__(self, program: Program, backends: Sequence[str], *, shard: int = SHARD) -> None:
        if not backends:
            raise HwsimError("images on several executors: name at least one")
        self.program, self.shard = program, shard
        self._calls = threading.Lock()
        context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        try:
            for backend in backends:
                ours, theirs = context.Pipe()
                memory = _shared_memory(_ROOMS * shard * math.prod(program.image_size))
                # A daemon, so that no process stays behind a parent that fails.
                process = context.Process(
                    target=_serve, args=(theirs, program, backend, memory.name, shard), daemon=True
                )
                self._workers.append(_Worker(backend, process, ours, memory))
                process.start()
                theirs.close()
            for worker in self._workers:
                # It says first whether the executor could be made.
                _answer(worker, 0)
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
                    worker.process.join(10)
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()
            # Somebody may still look into the memory after an interrupt; it goes when they are done.
            with suppress(BufferError):
                worker.memory.close()
            with suppress(FileNotFoundError):
                worker.memory.unlink()

    def _part(self, images: int) -> int:
        """Images that are handed out at a time: few enough that every process gets some, several where it can."""
        each = -(-images // len(self._workers))
        return min(self.shard, max(-(-each // _PARTS), min(SMALLEST_SHARD, each)))

    def _settle(self) -> None:
        """Wait until no process reads its memory for an earlier call, which was interrupted or failed.

        Raises
        ------
        HwsimError
            It is closed, or a process ended.
        """
        if not self._workers:
            raise HwsimError("the executors are closed; make a new ShardedExecutor")
        for worker in self._workers:
            _answer(worker, _ask(worker, "settle"))

    def prepare(self, images: int, batch: int | None = None) -> None:
        """See `hwsim.execute.Executor.prepare`."""
        with self._calls:
            self._settle()
            part = self._part(images)
            # The last part may be smaller than the others, and any process may get it.
            for count in sorted({part, images % part or part}):
                requests = [_ask(worker, "prepare", count, batch) for worker in self._workers]
                for worker, request in zip(self._workers, requests, strict=True):
                    _answer(worker, request)

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
        with self._calls:
            self._settle()
            return self._predict(images, batch, progress)

    def _predict(self, images: np.ndarray, batch: int | None, progress: Callable[[int], None] | None) -> np.ndarray:
        last = self.program.nodes[-1]
        logits = np.empty((len(images), math.prod(self.program.shape(last.name))), last.spec.output.dtype)
        parts = deque(batches(len(images), self._part(len(images))))
        handing_out, telling, stopped = threading.Lock(), threading.Lock(), threading.Event()

        def following(busy: bool) -> slice | None:
            """The next part, for a busy process only where enough are left for all."""
            with handing_out:
                none = stopped.is_set() or len(parts) <= (len(self._workers) if busy else 0)
                return None if none else parts.popleft()

        def feed(worker: _Worker) -> None:
            rooms = [_images_in(worker.memory, self.program, self.shard, room) for room in range(_ROOMS)]
            under_way: deque[tuple[slice, int]] = deque()
            given = 0
            try:
                while (part := following(bool(under_way))) is not None or under_way:
                    if part is not None:
                        count, room = part.stop - part.start, given % _ROOMS
                        np.copyto(rooms[room][:count], images[part])
                        under_way.append((part, _ask(worker, "predict", count, batch, room)))
                        given += 1
                    if part is None or len(under_way) == _ROOMS:
                        done, request = under_way.popleft()
                        logits[done] = _answer(worker, request)
                        if progress is not None:
                            with telling:
                                progress(done.stop - done.start)
            except BaseException:
                stopped.set()
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


def _shared_memory(size: int) -> SharedMemory:
    """Shared memory that is really there: a page that the system cannot give later would end the process by a signal.

    Raises
    ------
    HwsimError
        There is not enough.
    """
    memory = SharedMemory(create=True, size=size)
    file = Path("/dev/shm") / memory.name
    try:
        if file.exists():  # on Linux
            with file.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, size)
    except OSError as error:
        memory.close()
        memory.unlink()
        raise HwsimError(
            f"several executors exchange images through shared memory, {size / (1 << 20):.0f} MiB each, and /dev/shm "
            f"has not enough ({error.strerror}); enlarge it (docker run --shm-size), or take one GPU (--device cuda)"
        ) from None
    return memory


def _ask(worker: _Worker, what: str, count: int = 0, batch: int | None = None, room: int = 0) -> int:
    """Send a request; gives its number, and raises `HwsimError` where the process has ended."""
    # Counted first: no other request may have the number of one that an interrupt has cut short.
    worker.request += 1
    try:
        worker.connection.send((worker.request, what, count, batch, room))
    except OSError:
        raise _ended(worker) from None
    return worker.request


def _ended(worker: _Worker) -> HwsimError:
    hint = f"; run it alone to see why (--device {worker.backend})" if worker.backend.startswith("cuda") else ""
    return HwsimError(f"the process of executor {worker.backend} ended{hint}")


def _answer(worker: _Worker, request: int) -> Any:
    """The result of a request; answers to earlier ones, which nobody took, are passed over.

    Raises
    ------
    HwsimError
        The process failed, or ended.
    """
    while True:
        try:
            number, worked, value = worker.connection.recv()
        except (EOFError, OSError):
            raise _ended(worker) from None
        if number == request:
            break
    if not worked:
        raise HwsimError(f"executor {worker.backend}: {value}")
    return value


def _images_in(memory: SharedMemory, program: Program, shard: int, room: int) -> np.ndarray:
    """Images of one of the rooms, uint8 [shard, H, W, C]."""
    offset = room * shard * math.prod(program.image_size)
    return np.ndarray((shard, *program.image_size), np.uint8, buffer=memory.buf, offset=offset)


def _serve(connection: Connection, program: Program, backend: str, name: str, shard: int) -> None:
    """Answer requests until the parent hangs up, or one fails in a way that may leave the executor in any state.

    An answer is (number of the request, whether it worked, result or reason).
    """
    # A terminal sends Ctrl-C to every process; the parent decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from hwsim.execute import Executor

    memory = SharedMemory(name)
    made: list[Executor] = []

    def make() -> None:
        made.append(Executor(program, backend))

    def work(what: str, count: int, batch: int | None, room: int) -> np.ndarray | None:
        if what == "settle":
            return None
        if what == "prepare":
            made[0].prepare(count, batch)
            return None
        return made[0].predict(_images_in(memory, program, shard, room)[:count], batch=batch)

    try:
        going = _reply(connection, 0, make)
        while going and made:
            try:
                number, *request = connection.recv()
            except (EOFError, OSError):
                return
            going = _reply(connection, number, partial(work, *request))
    finally:
        # The parent need not wait until a GPU is given back.
        connection.close()
        with suppress(BufferError):
            memory.close()


def _reply(connection: Connection, number: int, work: Callable[[], Any]) -> bool:
    """Send what some work gives, and tell whether to go on.

    Not behind a failure that is no refusal, nor where nobody listens any more.
    """
    worked, goes_on = True, True
    try:
        value = work()
    except HwsimError as error:
        worked, value = False, str(error)
    except Exception as error:
        worked, goes_on, value = False, False, "".join(traceback.format_exception_only(error)).strip()
    try:
        connection.send((number, worked, value))
    except OSError:
        return False
    return goes_on
