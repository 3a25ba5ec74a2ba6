"""What a plan's tasks are, and in which order workers get them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from ckptforge.formats.entry import FileIndex, TensorEntry
from ckptforge.planning.plan import Assembly, Plan
from ckptforge.run.audit import Audit
from ckptforge.run.blocks import Block, Digests, Hashes, block_count, blocks_of, hash_of, whole_file
from ckptforge.run.budget import Budget
from ckptforge.run.ledger import Finished, Ledger
from ckptforge.run.tiles import Tile, best_form, tiles
from ckptforge.run.write import paired_ranges

Kept = Mapping[TensorEntry, Finished]
_MOVE_BYTES = 8 * 1024 * 1024


class Move(msgspec.Struct, frozen=True):
    """Bytes that go over as they are."""

    source: TensorEntry
    source_at: int
    target: TensorEntry
    target_at: int
    nbytes: int


class Fill(msgspec.Struct, frozen=True):
    """A tile of an output tensor to be put together from its sources."""

    assembly: Assembly
    tile: Tile

    @property
    def target(self) -> TensorEntry:
        return self.assembly.target

    @property
    def nbytes(self) -> int:
        return self.tile.elements * self.target.dtype.itemsize


class Check(msgspec.Struct, frozen=True):
    """A source file whose stored checksum is to be compared with its contents."""

    file: FileIndex


Task = Move | Fill | Check | Block


class Outcome(Protocol):
    """What a worker has of the task that it did last: the counts of its casts, or the digest of its
    block."""

    @property
    def audit(self) -> Audit: ...
    @property
    def digest(self) -> bytes: ...


class Schedule:
    """A plan cut into what a worker does at a time, in file order, with the checks of stored
    checksums.

    With `hashing` the blocks of sources stand between the tasks, in step with them, and those of an
    output tensor come when it has been written: either is then still in the page cache, and hashing
    goes on while another worker writes. A finished tensor goes into the journal; `kept` are those
    of an earlier run, which aren't made again.
    """

    def __init__(
        self, plan: Plan, budget: Budget, hashing: bool, journal: Ledger | None, kept: Kept
    ) -> None:
        made = [assembly for assembly in plan.assemblies if assembly.target not in kept]
        known = journal.sources if journal is not None else {}
        blocks = (
            (i, block)
            for i, file in enumerate(plan.sources)
            for block in blocks_of(file.path, whole_file(file))
        )
        self._plan, self._journal = plan, journal
        self._checks = [Check(file) for file in plan.sources if file.checksum is not None]
        self._tasks = fills(made, budget, moves=True)
        self._blocks = (
            (block for i, block in blocks if (i, block.start) not in known) if hashing else iter(())
        )
        self._share = sum(file.size for file in plan.sources) / max(
            sum(assembly.target.nbytes for assembly in made), 1
        )
        self._written = self._hashed = 0.0
        self._unfinished = {
            a.target: _Unfinished(a.target.nbytes, block_count(a.target))
            for a in made
            if a.target.nbytes
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

    def finished(self, task: object, worker: Outcome) -> None:
        """To be notified of each task that has been done, and by whom."""
        if isinstance(task, Block) and task.entry in self._unfinished:
            self._hashed_block(task, worker.digest)
        elif isinstance(task, Block):
            self._source_digests[task.file][task.start] = worker.digest
            if self._journal is not None:
                self._journal.add_source(self._sources[task.file], task.start, worker.digest)
        elif isinstance(task, Move | Fill):
            self._written_part(task, worker)

    def _written_part(self, task: Move | Fill, worker: Outcome) -> None:
        part = self._unfinished[task.target]
        part.unwritten -= task.nbytes
        if isinstance(task, Fill) and not task.assembly.replica:
            part.audit.merge(worker.audit)
            self.audit.merge(worker.audit)
        if not part.unwritten and self._hashing:
            self._ready.extend(blocks_of(task.target.path, task.target))

    def _hashed_block(self, block: Block, digest: bytes) -> None:
        part, entry = self._unfinished[block.entry], block.entry
        part.digests[block.start] = digest
        if part.blocks == len(part.digests):
            found = hash_of(part.digests)
            self.hashes[entry.path][entry.name] = found
            if self._journal is not None:
                self._journal.add_tensor(self._plan.key(entry), Finished(found, part.audit))
            del self._unfinished[entry]

    def all_hashes(self) -> Hashes | None:
        """The hashes of everything read and written, once all is done."""
        if not self._hashing:
            return None
        for file in self._plan.files:
            self.hashes[file.path].update(
                {name: hash_of({}) for name, entry in file.tensors.items() if not entry.nbytes}
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


def fills(
    assemblies: Iterable[Assembly], budget: Budget, moves: bool = False
) -> Iterator[Move | Fill]:
    """Assemblies cut into tiles, or into moves where bytes go over as they are, if those are
    wanted."""
    for assembly in assemblies:
        target = assembly.target
        if not target.elements:
            continue
        joined = [(source, transfer.coalesced()) for source, transfer in assembly.copies]
        itemsize = target.dtype.itemsize
        as_it_is = (
            source.dtype == target.dtype and not source.computed and transfer.is_move
            for source, transfer in joined
        )
        if moves and not assembly.zeroed and all(as_it_is):
            for source, transfer in joined:
                runs = paired_ranges(
                    source,
                    transfer.source * itemsize,
                    target,
                    transfer.target * itemsize,
                    transfer.size * itemsize,
                )
                for source_at, target_at, length in runs:
                    for done in range(0, length, _MOVE_BYTES):
                        yield Move(
                            source,
                            source_at + done,
                            target,
                            target_at + done,
                            min(_MOVE_BYTES, length - done),
                        )
            continue
        turned = any(transfer.shape and transfer.from_[-1] != 1 for _, transfer in joined)
        limit = budget.tile_elements(target.dtype, turned)
        width, rows, columns = best_form(
            target.elements, itemsize, tuple(transfer for _, transfer in assembly.copies), limit
        )
        for tile in tiles(target.elements, width, rows, columns):
            yield Fill(assembly, tile)
