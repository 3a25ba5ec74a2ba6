"""Workers that take tasks from one queue until there are none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, Protocol

from ckptforge.errors import OutputError
from ckptforge.planning.reads import Ranges
from ckptforge.run.budget import Budget
from ckptforge.run.files import OpenFiles
from ckptforge.run.worker import Worker
from ckptforge.storage.store import Writer

Progress = Callable[[int, int], None]


class Task(Protocol):
    """What a worker does at a time."""

    @property
    def nbytes(self) -> int:
        """Bytes that count as progress when it is done."""

    def do(self, worker: Worker) -> Any:
        """Does it with the worker's memory and files. Returns what `finished` is to know."""


def run_tasks(
    queue: Iterator[Task],
    budget: Budget,
    finished: Callable[[Any, Any], None] = lambda task, outcome: None,
    progress: Callable[[int], None] = lambda done: None,
    targets: Mapping[Path, Writer] | None = None,
    read: Mapping[Path, Ranges] | None = None,
) -> None:
    """Each worker takes tasks until there are none; `targets` are the files that they write, `read`
    what is read of those of which not all is.

    `finished` is notified of each task that has been done and of what it returned, by one thread at
    a time, and may add to the queue; `progress` is told the bytes done so far. The first error of
    any worker stops all and is raised.
    """
    lock = threading.Lock()
    done = 0

    def work(worker: Worker) -> None:
        nonlocal done
        try:
            while True:
                with lock:
                    task = None if files.stop.is_set() else next(queue, None)
                if task is None:
                    return
                outcome = task.do(worker)
                with lock:
                    finished(task, outcome)
                    if task.nbytes:
                        done += task.nbytes
                        progress(done)
        except BaseException as error:
            errors.append(error)
            files.stop.set()

    errors: list[BaseException] = []
    with closing(OpenFiles(targets, read)) as files:
        workers = [Worker(files, budget) for _ in range(budget.workers)]
        _in_threads(work, workers, files.stop)
    if errors:
        raise errors[0]


def _in_threads(
    work: Callable[[Worker], None], workers: list[Worker], stop: threading.Event
) -> None:
    """Does it with each worker in a thread of its own, which has the caller's context variables;
    where the system gives no more threads, those that there are do it. Raises `OutputError` where
    there is none."""
    futures: list[Future[None]] = []
    with ThreadPoolExecutor(len(workers), thread_name_prefix="ckptforge") as pool:
        try:
            for worker in workers:
                try:
                    futures.append(pool.submit(copy_context().run, work, worker))
                except RuntimeError as error:
                    if not futures:
                        raise OutputError(
                            f"no thread can be started: {error}; raise the "
                            "system's limit of processes."
                        ) from error
                    break
            wait(futures)
        except BaseException:
            stop.set()
            # a second interrupt must not close files that are being written
            while not all(future.done() for future in futures):
                with suppress(BaseException):
                    wait(futures)
            raise
