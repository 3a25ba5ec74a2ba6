"""Workers that take tasks from one queue until there are none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, Protocol

from ckptforge.errors import OutputError
from ckptforge.run.worker import Worker

Progress = Callable[[int, int], None]


class Task(Protocol):
    """What a worker does at a time."""

    @property
    def progress(self) -> int:
        """Bytes that count as progress when it is done."""
        ...

    def do(self, worker: Worker) -> Any:
        """Does it, with the worker's memory and files. Returns what the one who made the task wants
        to know of it."""
        ...


def run_tasks(
    queue: Iterator[Task],
    workers: Sequence[Worker],
    stop: threading.Event,
    finished: Callable[[Any, Any], None] = lambda task, outcome: None,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Each worker takes tasks until there are none; `finished` is notified of each that has been
    done and of what it returned, by one thread at a time, and may add to the queue; `progress` is
    told the bytes done so far. The first error of any sets `stop`, which ends all, and is
    raised."""
    lock = threading.Lock()
    done = 0

    def take() -> Task | None:
        with lock:
            return None if stop.is_set() else next(queue, None)

    def work(worker: Worker) -> None:
        nonlocal done
        try:
            while (task := take()) is not None:
                outcome = task.do(worker)
                with lock:
                    finished(task, outcome)
                    if task.progress:
                        done += task.progress
                        progress(done)
        except BaseException as error:
            errors.append(error)
            stop.set()
            raise

    errors: list[BaseException] = []
    futures: list[Future[None]] = []
    with ThreadPoolExecutor(len(workers), thread_name_prefix="ckptforge") as pool:
        try:
            for worker in workers:
                try:
                    futures.append(pool.submit(work, worker))
                except RuntimeError as error:  # no more threads: those that there are do it
                    if not futures:
                        raise OutputError(
                            f"no thread can be started: {error}; raise the "
                            "system's limit of processes."
                        ) from error
                    break
            for future in futures:
                future.result()
        except BaseException:
            stop.set()
            # a second interrupt must not close files that are being written
            while not all(future.done() for future in futures):
                with suppress(BaseException):
                    wait(futures)
            raise
    if errors:  # of one that wasn't started at once
        raise errors[0]
