"""In which order workers get the tasks of a plan."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from ckptforge.planning.plan import Plan
from ckptforge.run.audit import Audit
from ckptforge.run.blocks import (
    Block,
    Digests,
    Hashes,
    block_count,
    blocks_of,
    hash_of,
    whole_file,
)
from ckptforge.run.budget import Budget
from ckptforge.run.pool import Task
from ckptforge.run.tasks import Fill, Move, Verify, tasks_of
from ckptforge.values import Place

Key = tuple[str, str]  # file as the plan's output names it, tensor


class Finished(msgspec.Struct, frozen=True):
    """A tensor that was written: its hash, and what its casts did."""

    hash: str
    audit: Audit


class Ledger(Protocol):
    """Where finished tensors and hashed blocks of sources are written down. `sources` are digests
    by (index of the source, first byte of the block)."""

    @property
    def sources(self) -> dict[tuple[int, int], bytes]: ...

    def add_tensor(self, key: Key, finished: Finished) -> None: ...
    def add_source(self, index: int, start: int, digest: bytes) -> None: ...


Kept = Mapping[Place, Finished]


class Schedule:
    """A plan cut into what a worker does at a time, in file order, with the checks of stored
    checksums.

    With `hashing` the blocks of sources stand between the tasks, in step with them, and those of an
    output tensor come when it has been written: either is then still in the page cache, and hashing
    goes on while another worker writes. A finished tensor goes into the ledger; `kept` are those
    of an earlier run, which aren't made again.
    """

    def __init__(
        self, plan: Plan, budget: Budget, hashing: bool, ledger: Ledger | None, kept: Kept
    ) -> None:
        made = [assembly for assembly in plan.assemblies if assembly.place not in kept]
        known = ledger.sources if ledger is not None else {}
        blocks = (
            (i, block)
            for i, file in enumerate(plan.sources)
            for block in blocks_of(file.path, whole_file(file))
        )
        self._plan, self._ledger = plan, ledger
        self._checks = [Verify(file) for file in plan.sources if file.checksum is not None]
        self._tasks = tasks_of(made, budget)
        self._blocks = (
            (block for i, block in blocks if (i, block.start) not in known) if hashing else iter(())
        )
        self._share = sum(file.size for file in plan.sources) / max(
            sum(assembly.place.nbytes for assembly in made), 1
        )
        self._written = self._hashed = 0.0
        self._unfinished = {
            a.place: _Unfinished(a.place.nbytes, block_count(a.place))
            for a in made
            if a.place.nbytes
        }
        self._ready: deque[Block] = deque()
        self._hashing = hashing
        self._sources = {file.path: i for i, file in enumerate(plan.sources)}
        self.audit = Audit()
        self.hashes: Hashes = {file.path: {} for file in plan.files}
        self._source_digests: Digests = {file.path: {} for file in plan.sources}
        for (i, start), digest in known.items() if hashing else ():
            self._source_digests[plan.sources[i].path][start] = digest
        for entry, finished in kept.items():
            self.audit.merge(finished.audit)
            self.hashes[entry.path][entry.name] = finished.hash

    def __iter__(self) -> Schedule:
        return self

    def __next__(self) -> Task:
        if self._checks:
            return self._checks.pop()
        if self._ready:
            return self._ready.popleft()
        task = next(self._blocks, None) if self._hashed <= self._written * self._share else None
        if task is not None:
            self._hashed += task.length
            return task
        made = next(self._tasks, None)
        if made is not None:
            self._written += made.nbytes
            return made
        return next(self._blocks)

    def finished(self, task: Task, outcome: Any) -> None:
        """To be notified of each task that has been done, and of what it returned."""
        if isinstance(task, Move):
            self._written_part(task, None)
        elif isinstance(task, Fill):
            self._written_part(task, None if task.assembly.replica else outcome)
        elif isinstance(task, Block) and task.entry in self._unfinished:
            self._hashed_block(task, outcome)
        elif isinstance(task, Block):
            self._source_digests[task.file][task.start] = outcome
            if self._ledger is not None:
                self._ledger.add_source(self._sources[task.file], task.start, outcome)

    def _written_part(self, task: Move | Fill, audit: Audit | None) -> None:
        part = self._unfinished[task.place]
        part.unwritten -= task.nbytes
        if audit is not None:
            part.audit.merge(audit)
            self.audit.merge(audit)
        if not part.unwritten and self._hashing:
            self._ready.extend(blocks_of(task.place.path, task.place))

    def _hashed_block(self, block: Block, digest: bytes) -> None:
        entry = block.entry
        assert isinstance(entry, Place)
        part = self._unfinished[entry]
        part.digests[block.start] = digest
        if part.blocks == len(part.digests):
            found = hash_of(part.digests)
            self.hashes[entry.path][entry.name] = found
            if self._ledger is not None:
                self._ledger.add_tensor(self._plan.key(entry), Finished(found, part.audit))
            del self._unfinished[entry]

    def all_hashes(self) -> Hashes | None:
        """The hashes of everything read and written, once all is done."""
        if not self._hashing:
            return None
        for file in self._plan.files:
            self.hashes[file.path].update(
                {name: hash_of({}) for name, entry in file.places.items() if not entry.nbytes}
            )
        for path, digests in self._source_digests.items():
            self.hashes[path] = {"": hash_of(digests)}
        return self.hashes


@dataclass
class _Unfinished:
    """A tensor on its way: the bytes that aren't written yet, what its casts did, how many blocks
    it has and the digests of those that are hashed."""

    unwritten: int
    blocks: int
    audit: Audit = field(default_factory=Audit)
    digests: dict[int, bytes] = field(default_factory=dict)
