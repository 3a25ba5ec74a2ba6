"""In which order workers get the tasks of a plan."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from ckptforge.planning.assembly import Assembly
from ckptforge.planning.plan import Plan
from ckptforge.run.audit import Audit
from ckptforge.run.blocks import Block, Hashes, block_count, blocks_of, hash_of
from ckptforge.run.budget import Budget
from ckptforge.run.needs import Consumer, Needs, Release
from ckptforge.run.order import as_they_lie
from ckptforge.run.page_cache import PageCache, exceeds_page_cache
from ckptforge.run.passing import BLOCK_BYTES
from ckptforge.run.pool import Task
from ckptforge.run.source_hashes import SourceHashes, SourceRun
from ckptforge.run.tasks import Batch, Fill, Verify, batches, tasks_of
from ckptforge.storage.address import address
from ckptforge.values import Located, Place, Stored

Key = tuple[str, str]  # file as the plan's output names it, tensor
_MOST_BYTES = 64 * 1024 * 1024  # of a batch
_BATCHES = 16  # for each worker, so that all end at about the same time


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
    """A plan cut into what a worker does at a time, in the order in which a single file is written,
    or sources lie, with the checks of stored checksums.

    With `sources` to hash, blocks that come by whole where tensors are made are hashed there. What
    wasn't of an output tensor, and of what it was made of, comes when it has been written: it is
    then still in the page cache, and hashing goes on while another worker writes. What nothing is
    made of comes last, and sources at an address: what was read of them by then is hashed already.
    A finished tensor goes into the ledger; `kept` are those of an earlier run, which aren't made
    again.
    """

    def __init__(
        self,
        plan: Plan,
        budget: Budget,
        sources: SourceHashes | None,
        ledger: Ledger | None,
        kept: Kept,
        consumer: Consumer | None = None,
    ) -> None:
        self._plan, self._sources, self._ledger = plan, sources, ledger
        self._consumer = consumer
        gone = consumer.gone if consumer is not None else ()
        self._checks = [
            Verify(file)
            for i, file in enumerate(plan.sources)
            if file.checksum is not None and i not in gone
        ]
        self._batches = self._made_of(plan, budget, kept)
        self._unwritten: dict[Place, int] = {}  # of tensors that are begun
        self._read: dict[Place, list[SourceRun]] = {}  # what they are made of
        self._far: dict[Place, list[SourceRun]] = {}  # of those, what isn't announced yet
        self._ready: deque[Task] = deque()
        self._digests: dict[Place, dict[int, bytes]] = {}
        self._audits: dict[Place, Audit] = {}
        self.audit = Audit()
        self._hashes: Hashes = {file.path: {} for file in plan.files}
        for place, finished in kept.items():
            self.audit.merge(finished.audit)
            self._hashes[place.path][place.name] = finished.hash
        self._cache = PageCache() if consumer is None and exceeds_page_cache(plan) else None
        self._needed: dict[Place, set[int]] = {}
        self._needs: Needs | None = None
        self._releases: list[Release] = []
        if consumer is not None and self._sources is not None:
            self._needs = Needs(plan, self._sources.counts, kept, consumer.gone)
            for source in self._needs.unneeded():
                self._free(source)

    def _made_of(self, plan: Plan, budget: Budget, kept: Kept) -> Iterator[Batch]:
        """What makes the tensors that aren't kept."""
        made, hashing = plan.assemblies, self._sources is not None
        begun = self._begun(
            made if budget.in_order else made.as_sources_lie(), kept, budget.in_order
        )
        if budget.in_order or any(address(file.path) is not None for file in plan.sources):
            numbers = {file.path: i for i, file in enumerate(plan.sources)}
            in_order = budget.in_order
            tasks = tasks_of(begun, budget) if in_order else as_they_lie(begun, budget, numbers)
            found = batches(tasks, 1, hashing)
            return self._announcing(found) if in_order else found
        # where sources go, little more than what is needed is written before the next goes
        most = _MOST_BYTES if self._consumer is None else BLOCK_BYTES
        alone = budget.workers == 1 and not plan.sources  # a unit, which comes with many others
        share = plan.tensor_bytes if alone else plan.tensor_bytes // (_BATCHES * budget.workers)
        nbytes = max(1, min(most, share))
        return batches(tasks_of(begun, budget), nbytes if hashing else 1, hashing)

    def _announcing(self, found: Iterator[Batch]) -> Iterator[Batch]:
        """Batches with what they and their next are made of of what is far, as that isn't read in
        the order in which it lies."""
        coming = next(found, None)
        while coming is not None:
            batch, coming = coming, next(found, None)
            parts = (*batch.parts, *(coming.parts if coming is not None else ()))
            runs = [run for part in parts for run in self._far.pop(part.place, ())]
            held = [
                run
                for part in parts
                if isinstance(part, Fill)
                for run in part.reads
                if address(run[0].path) is not None
            ]
            yield replace(batch, needs=tuple(runs), held=tuple(held))

    def _begun(self, made: Iterable[Assembly], kept: Kept, in_order: bool) -> Iterator[Assembly]:
        for assembly in made:
            place = assembly.place
            if place not in kept:
                self._unwritten[place] = place.nbytes
                if self._sources is not None:
                    self._read[place] = runs_of(assembly)
                if in_order:
                    runs = self._read.get(place) or runs_of(assembly)
                    self._far[place] = [run for run in runs if address(run[0].path) is not None]
                if self._needs is not None:
                    self._needed[place] = self._needs.of(assembly)
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
        if (batch := next(self._batches, None)) is not None:
            return batch
        if self._sources is not None and (block := self._sources.rest(self._coming)) is not None:
            return block
        raise StopIteration

    def _coming(self) -> Iterator[SourceRun]:
        """What tensors that aren't written yet are made of."""
        return chain.from_iterable(self._read.values())

    def finished(self, task: Task, outcome: Any) -> None:
        """To be notified of each task that has been done, and of what it returned."""
        if isinstance(task, Block):
            self._hashed(task, outcome)
        elif isinstance(task, Release):
            task.consumer.let_go(task.source, self.audit)
        elif isinstance(task, Batch):
            done, digests = outcome
            for (entry, start), digest in digests.items():
                self._passed(entry, start, digest)
            for part, audits in zip(task.parts, done, strict=False):
                for place, audit in (audits or {}).items():
                    self.audit.merge(audit)
                    self._audits.setdefault(place, Audit()).merge(audit)
                for place, nbytes in part.writes:
                    self._written(place, nbytes)

    def _passed(self, entry: Located, start: int, digest: bytes) -> None:
        """Notes the digest of a block that came by."""
        if isinstance(entry, Place):
            self._digests.setdefault(entry, {})[start] = digest
        elif self._sources is not None and (block := self._sources.passed(entry, start)):
            self._hashed_source(block, digest)

    def _written(self, place: Place, nbytes: int) -> None:
        """Notes so many bytes of a tensor, and what is to be done when there are no more."""
        self._unwritten[place] -= nbytes
        if self._unwritten[place]:
            return
        del self._unwritten[place]
        if self._sources is None:
            return
        known = self._digests.setdefault(place, {})
        self._ready.extend(block for block in blocks_of(place) if block.start not in known)
        runs = self._read.pop(place)
        for stored, (first, end) in runs:
            self._ready.extend(self._sources.read(stored, first, end))
        if self._cache is not None:
            for entry, (first, end) in (*runs, (place, (0, place.nbytes))):
                self._ready.extend(self._cache.add(entry, first, end))
        self._finish(place)

    def _hashed(self, block: Block, digest: bytes) -> None:
        entry = block.entry
        if isinstance(entry, Place):
            self._digests[entry][block.start] = digest
            self._finish(entry)
        else:
            self._hashed_source(block, digest)

    def _hashed_source(self, block: Block, digest: bytes) -> None:
        if self._sources is not None:
            index, at = self._sources.note(block, digest)
            if self._ledger is not None:
                self._ledger.add_source(index, at, digest)
            if self._needs is not None and self._needs.hashed(index):
                self._free(index)

    def _finish(self, place: Place) -> None:
        """Notes a tensor's hash, once all its blocks have theirs."""
        digests = self._digests[place]
        if len(digests) != block_count(place):
            return
        found = self._hashes[place.path][place.name] = hash_of(digests)
        audit = self._audits.pop(place, Audit())
        if self._ledger is not None:
            self._ledger.add_tensor(self._plan.key(place), Finished(found, audit))
        del self._digests[place]
        if self._needs is not None:
            for source in self._needed.pop(place, ()):
                if self._needs.made(source):
                    self._free(source)

    def _free(self, source: int) -> None:
        """Lets go of a source that no tensor needs any more, once it is hashed."""
        if self._consumer is None or self._sources is None or self._needs is None:
            return
        self._ready.extend(self._sources.of(source))
        if not self._needs.left(source) and source not in self._consumer.gone:
            self._releases.append(Release(source, self._consumer, self._plan))

    def all_hashes(self) -> Hashes | None:
        """The hashes of everything read and written, once all is done."""
        if self._sources is None:
            return None
        for file in self._plan.files:
            empty = (name for name, place in file.places.items() if not place.nbytes)
            self._hashes[file.path].update(dict.fromkeys(empty, hash_of({})))
        if self._plan.sources:
            for source, found in zip(self._plan.sources, self._sources.hashes(), strict=True):
                self._hashes[source.path] = {"": found}
        return self._hashes


def runs_of(assembly: Assembly) -> list[SourceRun]:
    """The bytes of stored tensors that a tensor is made of, of each from the first to the last."""
    runs: dict[Stored, tuple[int, int]] = {}
    for fragment in assembly.fragments:
        stored, transfer = fragment.stored, fragment.transfer
        if transfer.size:
            count = transfer.last_source + 1 - transfer.source
            first, length = stored.bytes_of(transfer.source, count)
            end = first + length
            low, high = runs.get(stored, (first, end))
            runs[stored] = min(first, low), max(end, high)
    return list(runs.items())
