"""In which order workers get the tasks of a plan."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import msgspec

from ckptforge.planning.assembly import Assembly
from ckptforge.planning.plan import Plan
from ckptforge.run.audit import Audit
from ckptforge.run.blocks import (
    Block,
    Hashes,
    block_count,
    blocks_of,
    hash_of,
    source_blocks,
    whole_file,
)
from ckptforge.run.budget import Budget
from ckptforge.run.moves import Move
from ckptforge.run.needs import Consumer, Needs, Release
from ckptforge.run.order import as_they_lie
from ckptforge.run.pool import Task
from ckptforge.run.tasks import Fill, Verify, tasks_of
from ckptforge.storage.address import address
from ckptforge.values import Located, Place, Stored

Key = tuple[str, str]  # file as the plan's output names it, tensor


class Finished(msgspec.Struct, frozen=True):
    """A tensor that was written: its hash, and what its casts did."""

    hash: str
    audit: Audit


class Ledger(Protocol):
    """What a run reports to while it goes on, so that another can continue from there
    (`publish/journal.py`). `sources` are digests by (index of the source, first byte of the
    block)."""

    @property
    def sources(self) -> dict[tuple[int, int], bytes]:
        """Those that are known."""
        ...

    def add_tensor(self, key: Key, finished: Finished) -> None:
        """Notes a finished tensor."""

    def add_source(self, index: int, start: int, digest: bytes) -> None:
        """Notes the hash of a block of a source."""


Kept = Mapping[Place, Finished]


class Schedule:
    """A plan cut into what a worker does at a time, in the order of its files, or of its sources
    where one is far, with the checks of stored checksums.

    With `hashing` the blocks of sources stand between the tasks, in step with them, and those of an
    output tensor come when it has been written: either is then still in the page cache, and hashing
    goes on while another worker writes. Sources at an address come last: what was read of them by
    then is hashed already. A finished tensor goes into the ledger; `kept` are those of an earlier
    run, which aren't made again.
    """

    def __init__(
        self,
        plan: Plan,
        budget: Budget,
        hashing: bool,
        ledger: Ledger | None,
        kept: Kept,
        consumer: Consumer | None = None,
    ) -> None:
        self._plan, self._hashing, self._ledger = plan, hashing, ledger
        known = ledger.sources if ledger is not None and hashing else {}
        self._sources: dict[Located, int] = {
            whole_file(file): i for i, file in enumerate(plan.sources)
        }
        all_blocks = [list(source_blocks(plan, file)) for file in plan.sources if hashing]
        blocks = [
            block
            for i, own in enumerate(all_blocks)
            for block in own
            if (i, block.start) not in known
        ]
        gone = consumer.gone if consumer is not None else ()
        self._checks = [
            Verify(file)
            for i, file in enumerate(plan.sources)
            if file.checksum is not None and i not in gone
        ]
        far = any(address(file.path) is not None for file in plan.sources)
        begun = self._begun(kept)
        numbers = {file.path: i for i, file in enumerate(plan.sources)}
        sorting = far and not budget.in_order
        self._tasks = as_they_lie(begun, budget, numbers) if sorting else tasks_of(begun, budget)
        self._source_blocks = (block for block in blocks if address(block.entry.path) is None)
        self._far_blocks = (block for block in blocks if address(block.entry.path) is not None)
        made = plan.tensor_bytes - sum(place.nbytes for place in kept)
        self._share = sum(block.length for block in blocks) / max(made, 1)
        self._written = self._hashed = 0.0
        self._unwritten: dict[Place, int] = {}  # of tensors that are begun
        self._ready: deque[Block] = deque()  # of tensors that are written
        self._digests: dict[Located, dict[int, bytes]] = {entry: {} for entry in self._sources}
        entries = list(self._sources)
        for (i, start), digest in known.items():
            self._digests[entries[i]][start] = digest
        self.audit = Audit()
        self._audits: dict[Place, Audit] = {}
        self._hashes: Hashes = {file.path: {} for file in plan.files}
        for place, finished in kept.items():
            self.audit.merge(finished.audit)
            self._hashes[place.path][place.name] = finished.hash

        self._consumer, self._needed = consumer, dict[Place, set[int]]()
        self._needs: Needs | None = None
        self._releases: list[Release] = []
        if consumer is not None:
            unhashed = [0] * len(plan.sources)
            for block in blocks:
                unhashed[self._sources[block.entry]] += 1
            self._needs = Needs(plan, unhashed, kept, consumer.gone)
            for source in self._needs.unneeded():
                self._release(source)

    def _release(self, source: int) -> None:
        if self._consumer is not None and source not in self._consumer.gone:
            self._releases.append(Release(source, self._consumer, self._plan))

    def _met(self, sources: Iterable[int]) -> None:
        if self._needs is not None:
            for source in sources:
                if self._needs.met(source):
                    self._release(source)

    def _begun(self, kept: Kept) -> Iterator[Assembly]:
        for assembly in self._plan.assemblies:
            if assembly.place not in kept:
                self._unwritten[assembly.place] = assembly.place.nbytes
                if self._needs is not None:
                    self._needed[assembly.place] = self._needs.of(assembly)
                yield assembly

    def __iter__(self) -> Schedule:
        return self

    def __next__(self) -> Task:
        if self._checks:
            return self._checks.pop()
        if self._releases:
            return self._releases.pop()
        if self._ready:
            return self._ready.popleft()
        if self._hashed <= self._written * self._share:
            block = next(self._source_blocks, None)
            if block is not None:
                self._hashed += block.length
                return block
        made = next(self._tasks, None)
        if made is None:
            return next(self._source_blocks, None) or next(self._far_blocks)
        self._written += made.nbytes
        return made

    def finished(self, task: Task, outcome: Any) -> None:
        """To be notified of each task that has been done, and of what it returned."""
        if isinstance(task, Block):
            self._hashed_block(task, outcome)
        elif isinstance(task, Release):
            task.consumer.let_go(task.source, self.audit)
        elif isinstance(task, Move | Fill):
            place = task.place
            if isinstance(task, Fill) and not task.assembly.replica:
                self.audit.merge(outcome)
                self._audits.setdefault(place, Audit()).merge(outcome)
            self._unwritten[place] -= task.nbytes
            if not self._unwritten[place]:
                del self._unwritten[place]
                if self._hashing:
                    self._digests[place] = {}
                    self._ready.extend(blocks_of(place))

    def _hashed_block(self, block: Block, digest: bytes) -> None:
        entry, digests = block.entry, self._digests[block.entry]
        digests[block.start] = digest
        if isinstance(entry, Place):
            if len(digests) == block_count(entry):
                found = self._hashes[entry.path][entry.name] = hash_of(digests)
                audit = self._audits.pop(entry, Audit())
                if self._ledger is not None:
                    self._ledger.add_tensor(self._plan.key(entry), Finished(found, audit))
                del self._digests[entry]
                self._met(self._needed.pop(entry, ()))
        elif isinstance(entry, Stored) and self._ledger is not None:
            self._ledger.add_source(self._sources[entry], block.start, digest)
            self._met([self._sources[entry]])

    def all_hashes(self) -> Hashes | None:
        """The hashes of everything read and written, once all is done."""
        if not self._hashing:
            return None
        for file in self._plan.files:
            empty = (name for name, place in file.places.items() if not place.nbytes)
            self._hashes[file.path].update(dict.fromkeys(empty, hash_of({})))
        for entry in self._sources:
            self._hashes[entry.path] = {"": hash_of(self._digests[entry])}
        return self._hashes
