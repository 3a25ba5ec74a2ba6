"""A plan carried out by an executor: any of `concurrent.futures`' kind, on one machine or on many.

Each unit is a call that can be pickled and returns the hashes of what it wrote. The process that
hands them out keeps the journal, and publishes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from itertools import islice
from typing import Any

import msgspec

from ckptforge.errors import CkptforgeError, OutputError
from ckptforge.machines.carrying import Work, carry_out
from ckptforge.machines.hashed import HashedBlocks
from ckptforge.machines.units import Unit, units_of
from ckptforge.planning.plan import Plan
from ckptforge.publish.publisher import Publication, publisher_of
from ckptforge.run.audit import Audit
from ckptforge.run.budget import Budget
from ckptforge.run.pool import Progress
from ckptforge.run.schedule import Finished, Kept, Key
from ckptforge.storage.address import address
from ckptforge.storage.endpoints import at_endpoints, said_endpoints
from ckptforge.storage.local import DISK
from ckptforge.storage.machine import this_machine
from ckptforge.storage.mounts import disk, through
from ckptforge.storage.store import Store
from ckptforge.version import __version__
from ckptforge.wording import counted

_TRIES = 3  # of a unit
_IN_FLIGHT = 128  # units that an executor holds at a time, so that few are pickled
_UNITS = 256  # that a large plan is cut into
_LEAST_BYTES = 32 << 20  # of a unit, which costs some milliseconds beside its bytes


class Report:
    """What was done of a unit: a ledger that comes back from where the work was done."""

    def __init__(self) -> None:
        self.audit = Audit()
        self.tensors: dict[Key, Finished] = {}
        self.sources: dict[tuple[int, int], bytes] = {}
        self.left: Any = None  # for `Publication.take_over`

    def add_tensor(self, key: Key, finished: Finished) -> None:
        """Notes a finished tensor."""
        self.tensors[key] = finished

    def add_source(self, index: int, start: int, digest: bytes) -> None:
        """Notes the hash of a block of a source."""
        self.sources[index, start] = digest


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A unit to be carried out elsewhere, by the same version of this package."""

    work: Work
    budget: Budget
    directory: str | None = None  # from which relative paths start
    endpoints: Mapping[tuple[str, str], str] = {}  # where buckets are (`storage/endpoints.py`)
    disk: Store = DISK  # by which disks are read and written
    machine: str = ""  # that of the process which publishes, and syncs what was written there
    version: str = __version__

    def __call__(self) -> Report:
        """Does it. Raises `OutputError` for another version, and where the files in the making
        aren't seen, and the errors of reading and writing."""
        plan, host = self.work.plan, socket.gethostname()
        if self.version != __version__:
            raise OutputError(
                f"{plan.output}: the worker on {host} has ckptforge {__version__}, not "
                f"{self.version}; install the same everywhere."
            )
        if self.directory not in (None, os.getcwd()):
            raise OutputError(
                f"{plan.output}: the worker on {host} runs in {os.getcwd()}, where relative paths "
                "are of other files; give absolute paths."
            )
        report = Report()
        durable = self.machine != this_machine()
        with through(self.disk), at_endpoints(self.endpoints):
            done = carry_out(
                self.work, report, self.budget, lambda _: None, durable=durable, made=True
            )
        report.audit, report.left = done.audit, done.left
        return report


class Executed(msgspec.Struct, frozen=True):
    """What was finished, and sentences about what went wrong and was done again."""

    tensors: dict[Key, Finished]
    notes: list[str]


def execute(
    plan: Plan,
    executor: Executor,
    budget: Budget,
    *,
    out: Publication,
    kept: Kept,
    check: Callable[[Audit], None],
    progress: Progress | None = None,
) -> Executed:
    """Carries out the units of a plan, whose files are open in the making, but for those of which
    all tensors are `kept`. What an executor that broke has left is for the caller to do. Raises the
    errors of reading and writing, what `check` raises of a unit's casts, and `OutputError` for a
    unit that fails again and again."""
    return _Execution(plan, executor, budget, out, check, progress).run(kept)


class _Execution:
    def __init__(
        self,
        plan: Plan,
        executor: Executor,
        budget: Budget,
        out: Publication,
        check: Callable[[Audit], None],
        progress: Progress | None,
    ) -> None:
        self.plan, self.executor, self.budget, self.out = plan, executor, budget, out
        self.whole_files = publisher_of(plan.output).whole_files
        self.check, self.progress = check, progress
        self.done, self.total, self.hashed = 0, plan.tensor_bytes, HashedBlocks(plan)
        self.pending: dict[Future[Report], Unit] = {}
        self.failures: dict[int, int] = {}  # number of a unit → how often it failed
        self.tensors: dict[Key, Finished] = {}

    def run(self, kept: Kept) -> Executed:
        units = self._left({self.plan.key(place) for place in kept})
        notes = []
        try:
            while self._fill(units):
                for future in wait(self.pending, return_when=FIRST_COMPLETED).done:
                    self._finished(self.pending.pop(future), future)
        except BrokenExecutor as error:
            notes = [f"the executor broke ({error}); what was left was done in this process."]
        finally:
            for future in self.pending:
                future.cancel()
        if again := sum(self.failures.values()):
            notes.append(f"{counted(again, 'unit', 'were')} lost with a worker and done again.")
        return Executed(self.tensors, notes)

    def _left(self, kept: set[tuple[str, str]]) -> Iterator[Unit]:
        most = None if self.whole_files else max(_LEAST_BYTES, self.total // _UNITS)
        for unit in units_of(self.plan, most):
            file = self.plan.files[unit.file]
            names = islice(file.places, unit.first, unit.last)
            if all((self.plan.name_of(file.path), name) in kept for name in names):
                self._report(unit.nbytes)
            else:
                yield unit

    def _fill(self, units: Iterator[Unit]) -> bool:
        """Whether the executor has something to do."""
        while len(self.pending) < _IN_FLIGHT and (unit := next(units, None)):
            self._submit(unit)
        return bool(self.pending)

    def _submit(self, unit: Unit) -> None:
        work = Work.of(self.plan, unit, self.hashed, self.whole_files)
        call = Call(
            work=work,
            budget=self.budget,
            directory=self._directory(),
            endpoints=said_endpoints(),
            disk=disk(),
            machine=this_machine(),
        )
        try:
            self.pending[self.executor.submit(call)] = unit
        except BrokenExecutor:
            raise
        except RuntimeError as error:
            raise OutputError(
                f"{self.plan.output}: the executor takes no work: {error}; give one that "
                "wasn't shut down."
            ) from error

    def _directory(self) -> str | None:
        paths = (self.plan.output, *(file.path for file in self.plan.sources))
        relative = any(address(path) is None and not path.is_absolute() for path in paths)
        return os.getcwd() if relative else None

    def _finished(self, unit: Unit, future: Future[Report]) -> None:
        error = future.exception()
        if error is None:
            report = future.result()
            self.check(report.audit)
            if self.out.take_over(self.plan.files[unit.file], report.left):
                self._note(unit, report)
                return
            error = FileNotFoundError("what the worker wrote isn't seen here")
        elif isinstance(error, (CkptforgeError, BrokenExecutor)):
            raise error
        self.failures[unit.number] = self.failures.get(unit.number, 0) + 1
        if self.failures[unit.number] == _TRIES:
            file = self.plan.files[unit.file].path
            raise OutputError(
                f"{file}: a unit of it failed {_TRIES} times, at last with {type(error).__name__}: "
                f"{error}."
            ) from error
        self._submit(unit)

    def _note(self, unit: Unit, report: Report) -> None:
        if self.out.journal is not None:
            for (index, start), digest in report.sources.items():
                self.out.journal.add_source(index, start, digest)
            for key, finished in report.tensors.items():
                self.out.journal.add_tensor(key, finished)
        self.tensors |= report.tensors
        self._report(unit.nbytes)

    def _report(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)
