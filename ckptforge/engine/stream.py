"""The engine: carries out a plan's copies with a fixed memory budget and several workers."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ckptforge.boxes import Transfer
from ckptforge.dtypes import DType
from ckptforge.engine.audit import Audit
from ckptforge.engine.blocks import Block, Digests, Hashes, blocks_of, hash_of, whole_file
from ckptforge.engine.budget import Budget
from ckptforge.engine.buffers import Buffers
from ckptforge.engine.casts import cast_function, numpy_dtype
from ckptforge.engine.journal import Finished, Journal
from ckptforge.engine.moves import PIECE_BYTES, begin_writeback, move_bytes, paired_ranges, write_exactly
from ckptforge.engine.plan import Assembly, Plan
from ckptforge.engine.tiles import Tile, best_form, inside, spans_of, strips, tiles
from ckptforge.engine.transpose import copy_strided
from ckptforge.formats.entry import FileIndex, TensorEntry, open_file, read_spans

Array = NDArray[Any]
Progress = Callable[[int, int], None]
Kept = Mapping[TensorEntry, Finished]

_MOVE_BYTES = 8 * 1024 * 1024
_MANY_CALLS = 16


@dataclass(frozen=True, slots=True)
class Move:
    """Bytes that go over as they are."""

    source: TensorEntry
    source_at: int
    target: TensorEntry
    target_at: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Fill:
    """A tile of an output tensor to be put together from its sources."""

    assembly: Assembly
    tile: Tile

    @property
    def target(self) -> TensorEntry:
        return self.assembly.target

    @property
    def nbytes(self) -> int:
        return self.tile.elements * self.target.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Check:
    """A source file whose stored checksum is to be compared with its contents."""

    file: FileIndex


Task = Move | Fill | Check | Block


class Schedule:
    """A plan cut into what a worker does at a time, in file order, with the checks of stored checksums.

    With `hashing` the blocks of sources stand between the tasks, in step with them, and those of an output tensor come when it
    has been written: either is then still in the page cache, and hashing goes on while another worker writes. A finished tensor
    goes into the journal; `kept` are those of an earlier run, which aren't made again.
    """

    def __init__(self, plan: Plan, budget: Budget, hashing: bool, journal: Journal | None, kept: Kept) -> None:
        made = [assembly for assembly in plan.assemblies if assembly.target not in kept]
        known = journal.sources if journal is not None else {}
        blocks = ((i, block) for i, file in enumerate(plan.sources) for block in blocks_of(file.path, whole_file(file)))
        self._plan, self._journal = plan, journal
        self._checks = [Check(file) for file in plan.sources if file.checksum is not None]
        self._tasks = fills(made, budget, moves=True)
        self._blocks = (block for i, block in blocks if (i, block.start) not in known) if hashing else iter(())
        self._share = sum(file.size for file in plan.sources) / max(sum(assembly.target.nbytes for assembly in made), 1)
        self._written = self._hashed = 0.0
        self._unfinished = {assembly.target: _Unfinished(assembly.target.nbytes) for assembly in made if assembly.target.nbytes}
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

    def finished(self, task: object, worker: Worker) -> None:
        """To be told of each task that has been done, and by whom."""
        if isinstance(task, Block) and task.entry in self._unfinished:
            self._hashed_block(task, worker.digest)
        elif isinstance(task, Block):
            self._source_digests[task.file][task.start] = worker.digest
            if self._journal is not None:
                self._journal.add_source(self._sources[task.file], task.start, worker.digest)
        elif isinstance(task, Move | Fill):
            self._written_part(task, worker)

    def _written_part(self, task: Move | Fill, worker: Worker) -> None:
        part = self._unfinished[task.target]
        part.unwritten -= task.nbytes
        if isinstance(task, Fill):
            part.audit.merge(worker.audit)
            self.audit.merge(worker.audit)
        if not part.unwritten and self._hashing:
            self._ready.extend(blocks_of(task.target.path, task.target))

    def _hashed_block(self, block: Block, digest: bytes) -> None:
        part, entry = self._unfinished[block.entry], block.entry
        part.digests[block.start] = digest
        if sum(1 for _ in blocks_of(entry.path, entry)) == len(part.digests):
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
            self.hashes[file.path].update({name: hash_of({}) for name, entry in file.tensors.items() if not entry.nbytes})
        for path, digests in self._source_digests.items():
            self.hashes[path] = {"": hash_of(digests)}
        return self.hashes


@dataclass
class _Unfinished:
    """A tensor on its way: the bytes that aren't written yet, what its casts did, and the digests of its blocks."""

    unwritten: int
    audit: Audit = field(default_factory=Audit)
    digests: dict[int, bytes] = field(default_factory=dict)


def fills(assemblies: Iterable[Assembly], budget: Budget, moves: bool = False) -> Iterator[Move | Fill]:
    """Assemblies cut into tiles, or into moves where bytes go over as they are, if those are wanted."""
    for assembly in assemblies:
        target = assembly.target
        if not target.elements:
            continue
        joined = [(source, transfer.coalesced()) for source, transfer in assembly.copies]
        itemsize = target.dtype.itemsize
        if moves and all(source.dtype == target.dtype and transfer.is_move for source, transfer in joined):
            for source, transfer in joined:
                runs = paired_ranges(source, transfer.source * itemsize, target, transfer.target * itemsize, transfer.size * itemsize)
                for source_at, target_at, length in runs:
                    for done in range(0, length, _MOVE_BYTES):
                        yield Move(source, source_at + done, target, target_at + done, min(_MOVE_BYTES, length - done))
            continue
        turned = any(transfer.shape and transfer.from_[-1] != 1 for _, transfer in joined)
        limit = budget.tile_elements(target.dtype, turned)
        width, rows, columns = best_form(target.shape, itemsize, tuple(transfer for _, transfer in assembly.copies), limit)
        for tile in tiles(target.shape, width, rows, columns):
            yield Fill(assembly, tile)


@dataclass
class Worker:
    """One thread's buffers, made once; after a task the counts of its casts, or the digest of its block."""

    descriptors: Descriptors
    budget: Budget
    audit: Audit = field(default_factory=Audit)
    digest: bytes = b""
    buffers: Buffers = field(default_factory=Buffers)
    strip_buffers: Buffers = field(default_factory=Buffers)

    def do(self, task: object) -> int:
        """Carries out a task; returns the bytes of output that it made."""
        if isinstance(task, Check):
            task.file.verify(self.buffers.lend((PIECE_BYTES, 0))[0].data)
            return 0
        if isinstance(task, Block):
            buffer = self.buffers.lend((PIECE_BYTES, task.entry.file_offset(task.start)))[0].data
            fd = self.descriptors.targets.get(task.file) or self.descriptors.source(task.entry.path)
            self.digest = task.digest(fd, buffer)
            return 0
        if isinstance(task, Move):
            self.move(task)
            return task.nbytes
        assert isinstance(task, Fill)
        self.audit = Audit()
        self.fill(task)
        return task.nbytes

    def move(self, task: Move) -> None:
        source, target = self.descriptors.source(task.source.path), self.descriptors.target(task.target.path)
        turn = self.descriptors.writing[task.target.path]
        move_bytes(task.source, source, task.source_at, task.target, target, task.target_at, task.nbytes, self.buffers, turn)
        begin_writeback(target, task.target_at, task.nbytes)

    def fill(self, task: Fill) -> None:
        target, tile = task.assembly.target, task.tile
        itemsize = target.dtype.itemsize
        (made,) = self.assemble(task)
        fd = self.descriptors.target(target.path)
        view = made.data
        at = 0
        with self.descriptors.many_calls if tile.run_count > _MANY_CALLS else self.descriptors.writing[target.path]:
            for first, count in tile.runs():
                for offset, length in target.file_ranges(first * itemsize, count * itemsize):
                    write_exactly(fd, offset, view[at : at + length], target.path)
                    at += length
        if tile.c1 == tile.width:  # the last of its rows
            for offset, length in target.file_ranges(tile.r0 * tile.width * itemsize, (tile.r1 - tile.r0) * tile.width * itemsize):
                begin_writeback(fd, offset, length)

    def assemble(self, task: Fill, *more: tuple[int, int]) -> list[Array]:
        """The bytes of a tile put together, and buffers of `more` (size, file offset); all are the worker's, until its next
        task."""
        target, tile = task.assembly.target, task.tile
        itemsize = target.dtype.itemsize
        made, *others = self.buffers.lend((task.nbytes, target.file_offset(next(tile.runs())[0] * itemsize)), *more)
        out = as_numbers(made, target.dtype)
        for source, transfer in task.assembly.copies:
            limit = self.budget.strip_elements(source.dtype, target.dtype)
            for part in inside(transfer, tile):
                for strip in strips(part, limit, source.dtype.itemsize):
                    self.gather(source, strip.coalesced(), target, task.assembly.group, out)
        return [made, *others]

    def gather(self, source: TensorEntry, part: Transfer, target: TensorEntry, group: str, out: Array) -> None:
        """Reads one part of a tile, casts it and puts it in its place."""
        itemsize = source.dtype.itemsize
        spans = spans_of(part, itemsize)
        cast = source.dtype != target.dtype
        read, spare, made = self.strip_buffers.lend(
            (spans.elements * itemsize, source.file_offset(part.source * itemsize)),
            (cast * part.size * itemsize, 0),
            (cast * part.size * target.dtype.itemsize, 0),
        )
        fd = self.descriptors.source(source.path)
        with self.descriptors.many_calls if spans.count > _MANY_CALLS else nullcontext():
            starts = ((part.source + start) * itemsize for start in spans.starts())
            read_spans(source, starts, spans.length * itemsize, read.data, fd)
        numbers = as_numbers(read, source.dtype)
        packed = Transfer(part.shape, 0, spans.strides, part.target, part.to)
        if cast:
            if spans.elements != part.size:  # gaps are neither cast nor counted
                dense = as_numbers(spare, source.dtype)
                strides = _without_gaps(packed)
                copy_strided(numbers, dense, Transfer(part.shape, 0, packed.from_, 0, strides).coalesced())
                numbers, packed = dense, Transfer(part.shape, 0, strides, part.target, part.to)
            packed = packed.coalesced()
            place = out[packed.target : packed.target + packed.size] if packed.is_move else as_numbers(made, target.dtype)
            self.audit.add(group, source.dtype, target.dtype, cast_function(source.dtype, target.dtype)(numbers, place))
            if packed.is_move:
                return
            numbers = place
        copy_strided(numbers, out, packed.coalesced())


def _without_gaps(transfer: Transfer) -> tuple[int, ...]:
    """Strides of a source without gaps, its axes nested as they were."""
    strides = [0] * len(transfer.shape)
    run = 1
    for axis in sorted(range(len(transfer.shape)), key=lambda axis: transfer.from_[axis]):
        strides[axis] = run
        run *= transfer.shape[axis]
    return tuple(strides)


def as_numbers(raw: Array, dtype: DType) -> Array:
    """Bytes as numbers: of the dtype itself if it can be cast, else of any of its size."""
    return raw.view(numpy_dtype(dtype) if dtype.floating else np.dtype(f"V{dtype.itemsize}"))


@dataclass
class Descriptors:
    """Open files, shared by all workers."""

    targets: Mapping[Path, int]
    sources: dict[Path, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    # Held over loops of many short system calls: two threads in such loops spend their time handing over the interpreter.
    many_calls: threading.Lock = field(default_factory=threading.Lock)
    # Held while a file is written: two threads that write to one file would spin on the system's lock of it.
    writing: Mapping[Path, threading.Lock] = field(init=False)

    def __post_init__(self) -> None:
        self.writing = {path: threading.Lock() for path in self.targets}

    def target(self, path: Path) -> int:
        return self.targets[path]

    def source(self, path: Path) -> int:
        found = self.sources.get(path)
        if found is None:
            with self.lock:
                if path not in self.sources:
                    self.sources[path] = open_file(path)
                found = self.sources[path]
        return found

    def close(self) -> None:
        """Closes the sources; the targets are another's."""
        for fd in self.sources.values():
            os.close(fd)


@dataclass(frozen=True)
class Done:
    """What a run did: the counts of its casts, and the hashes of what was read and written if they were wanted."""

    audit: Audit
    hashes: Hashes | None


def run(
    plan: Plan,
    targets: Mapping[Path, int],
    budget: Budget,
    progress: Progress | None = None,
    hashing: bool = False,
    journal: Journal | None = None,
    kept: Kept | None = None,
) -> Done:
    """Writes all tensors of a plan into the open descriptors `targets`, but for those `kept`, which are there already.

    `progress(done, total)` is called with bytes of output, by one thread at a time. The first error of any worker stops
    all and is raised.
    """
    descriptors = Descriptors(targets)
    schedule = Schedule(plan, budget, hashing, journal, kept or {})
    workers = [Worker(descriptors, budget) for _ in range(budget.workers)]
    try:
        run_workers(schedule, workers, progress, plan.tensor_bytes, schedule.finished, sum(entry.nbytes for entry in kept or ()))
    finally:
        descriptors.close()
    return Done(schedule.audit, schedule.all_hashes())


class Doer(Protocol):
    """What carries out tasks on one thread; `do` returns the bytes that count as progress."""

    def do(self, task: Any) -> int: ...


W = TypeVar("W", bound=Doer)


def run_workers(
    queue: Iterator[object],
    workers: Sequence[W],
    progress: Progress | None,
    total: int,
    finished: Callable[[object, W], None] | None = None,
    done: int = 0,
) -> Sequence[W]:
    """Each worker takes tasks until there are none; `finished` is told of each that has been done, and by whom, and may add to
    the queue; `done` counts as progress made before. The first error of any stops all and is raised."""
    lock, stop = threading.Lock(), threading.Event()

    def take() -> object:
        with lock:
            return None if stop.is_set() else next(queue, None)

    def work(worker: W) -> None:
        nonlocal done
        try:
            while (task := take()) is not None:
                written = worker.do(task)
                with lock:
                    if finished is not None:
                        finished(task, worker)
                    if written and progress is not None:
                        done += written
                        progress(done, total)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(len(workers), thread_name_prefix="ckptforge") as pool:
        futures = [pool.submit(work, worker) for worker in workers]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stop.set()
            raise
    return workers
