"""Tasks for files that are written from front to back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ckptforge.run.pool import Task
from ckptforge.run.schedule import Schedule
from ckptforge.run.tasks import Batch

if TYPE_CHECKING:
    from ckptforge.run.worker import Worker

_SHORTLY = 0.002  # seconds


class Pause(msgspec.Struct, frozen=True):
    """What a worker does that others must not be left behind by."""

    nbytes: int = 0

    def do(self, worker: Worker) -> None:
        """Waits a moment."""
        worker.files.stop.wait(_SHORTLY)


class FrontToBack:
    """The tasks of a schedule, of which none is begun that lies more than `most` bytes behind one
    that isn't done: so much has to be held of a file that is written in order."""

    def __init__(self, schedule: Schedule, most: int) -> None:
        self._schedule, self._most = schedule, most
        self._handed = 0
        self._running: dict[int, int] = {}  # the first handed out is the first

    def __iter__(self) -> FrontToBack:
        return self

    def __next__(self) -> Task:
        oldest = next(iter(self._running.values()), self._handed)
        if self._handed - oldest > self._most:
            return Pause()
        task = next(self._schedule)
        if isinstance(task, Batch):
            self._running[id(task)] = self._handed
            self._handed += task.nbytes
        return task

    def finished(self, task: Any, outcome: Any) -> None:
        """See `Schedule.finished`."""
        self._running.pop(id(task), None)
        self._schedule.finished(task, outcome)
