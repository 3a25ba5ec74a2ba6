"""The engine: carries out a plan's copies with a fixed memory budget and several workers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from ckptforge.boxes import Transfer
from ckptforge.dtypes import DType
from ckptforge.errors import OutputError, PlanError
from ckptforge.formats.entry import TensorEntry, read_range, read_spans
from ckptforge.planning.plan import Plan
from ckptforge.run.audit import Audit, CastCount
from ckptforge.run.blocks import Block, Hashes
from ckptforge.run.budget import Budget
from ckptforge.run.buffers import Buffers
from ckptforge.run.cache import Held
from ckptforge.run.casts import cast_function, numpy_dtype
from ckptforge.run.ledger import Ledger
from ckptforge.run.low_rank import Addend, factor_bytes
from ckptforge.run.scales import Scales, scale_bytes
from ckptforge.run.tasks import Check, Fill, Kept, Move, Schedule
from ckptforge.run.tiles import Spans, inside, spans_of, strips
from ckptforge.run.transpose import copy_strided
from ckptforge.run.write import PIECE_BYTES, move_bytes
from ckptforge.storage.files import open_file, write_exactly
from ckptforge.storage.store import Reader, Writer

Array = NDArray[Any]
Progress = Callable[[int, int], None]

_MANY_CALLS = 16


@dataclass
class Worker:
    """One thread's buffers, made once; after a task the counts of its casts, or the digest of its
    block."""

    descriptors: Descriptors
    budget: Budget
    audit: Audit = field(default_factory=Audit)
    digest: bytes = b""
    buffers: Buffers = field(default_factory=Buffers)
    strip_buffers: Buffers = field(default_factory=Buffers)
    held: Held = field(init=False)  # factors and scales, by their entries in the plan

    def __post_init__(self) -> None:
        self.held = Held(self.budget.held)

    def do(self, task: object) -> int:
        """Carries out a task; returns the bytes of output that it made."""
        if isinstance(task, Check):
            task.file.verify(
                self.buffers.lend((PIECE_BYTES, 0))[0].data, self.descriptors.stop.is_set
            )
            return 0
        if isinstance(task, Block):
            buffer = self.buffers.lend((PIECE_BYTES, task.entry.file_offset(task.start)))[0].data
            held = self.descriptors.targets.get(task.file)
            reader = self.descriptors.source(task.entry.path) if held is None else held
            self.digest = task.digest(reader, buffer)
            return 0
        if isinstance(task, Move):
            self.move(task)
            return task.nbytes
        assert isinstance(task, Fill)
        self.audit = Audit()
        self.fill(task)
        return task.nbytes

    def move(self, task: Move) -> None:
        source, target = (
            self.descriptors.source(task.source.path),
            self.descriptors.target(task.target.path),
        )
        turn = self.descriptors.writing[task.target.path]
        move_bytes(
            task.source,
            source,
            task.source_at,
            task.target,
            target,
            task.target_at,
            task.nbytes,
            self.buffers,
            turn,
        )
        target.begin_sync(task.target_at, task.nbytes)

    def fill(self, task: Fill) -> None:
        target, tile = task.assembly.target, task.tile
        itemsize = target.dtype.itemsize
        (made,) = self.assemble(task)
        writer = self.descriptors.target(target.path)
        view = made.data
        at = 0
        with (
            self.descriptors.many_calls
            if tile.run_count > _MANY_CALLS
            else self.descriptors.writing[target.path]
        ):
            for first, count in tile.runs():
                for offset, length in target.file_ranges(first * itemsize, count * itemsize):
                    write_exactly(writer, offset, view[at : at + length], target.path)
                    at += length
        if tile.c1 == tile.width:  # the last of its rows
            for offset, length in target.file_ranges(
                tile.r0 * tile.width * itemsize, (tile.r1 - tile.r0) * tile.width * itemsize
            ):
                writer.begin_sync(offset, length)

    def assemble(self, task: Fill, *more: tuple[int, int]) -> list[Array]:
        """The bytes of a tile put together, and buffers of `more` (size, file offset); all are the
        worker's, until its next task."""
        target, tile = task.assembly.target, task.tile
        itemsize = target.dtype.itemsize
        made, *others = self.buffers.lend(
            (task.nbytes, target.file_offset(next(tile.runs())[0] * itemsize)), *more
        )
        out = as_numbers(made, target.dtype)
        if task.assembly.zeroed:
            made[:] = 0
        left = tile.elements
        for source, transfer in task.assembly.copies:
            summed = source.working_dtype if source.computed else None
            limit = self.budget.strip_elements(source.dtype, target.dtype, summed)
            for part in inside(transfer, tile):
                left -= part.size
                for strip in strips(part, limit, source.dtype.itemsize):
                    self.gather(source, strip.coalesced(), target, task.assembly.group, out)
        if left and not task.assembly.zeroed:
            raise PlanError(
                f"{target.name}: {left} elements of {tile} aren't filled; this is a "
                "defect of ckptforge, please report it."
            )
        return [made, *others]

    def gather(
        self, source: TensorEntry, part: Transfer, target: TensorEntry, group: str, out: Array
    ) -> None:
        """Reads one part of a tile, casts it and puts it in its place."""
        itemsize = source.dtype.itemsize
        spans = spans_of(part, itemsize)
        dtype = source.working_dtype if source.computed else source.dtype
        cast = dtype != target.dtype
        read, spare, made, summed = self.strip_buffers.lend(
            (spans.elements * itemsize, source.file_offset(part.source * itemsize)),
            (cast * part.size * dtype.itemsize, 0),
            (cast * part.size * target.dtype.itemsize, 0),
            (source.computed * spans.elements * dtype.itemsize, 0),
        )
        reader = self.descriptors.source(source.path)
        with self.descriptors.many_calls if spans.count > _MANY_CALLS else nullcontext():
            starts = ((part.source + start) * itemsize for start in spans.starts())
            read_spans(source, starts, spans.length * itemsize, read.data, reader)
        numbers = as_numbers(read, source.dtype)
        if source.computed:
            numbers = self.compute(
                source, numbers, as_numbers(summed, dtype), part.source, spans, group
            )
        packed = Transfer(part.shape, 0, spans.strides, part.target, part.to)
        if cast:
            if spans.elements != part.size:  # gaps are neither cast nor counted
                dense = as_numbers(spare, dtype)
                strides = _without_gaps(packed)
                copy_strided(
                    numbers, dense, Transfer(part.shape, 0, packed.from_, 0, strides).coalesced()
                )
                numbers, packed = dense, Transfer(part.shape, 0, strides, part.target, part.to)
            packed = packed.coalesced()
            place = (
                out[packed.target : packed.target + packed.size]
                if packed.is_move
                else as_numbers(made, target.dtype)
            )
            self.audit.add(
                group, dtype, target.dtype, cast_function(dtype, target.dtype)(numbers, place)
            )
            if packed.is_move:
                return
            numbers = place
        copy_strided(numbers, out, packed.coalesced())

    def compute(
        self, source: TensorEntry, numbers: Array, out: Array, start: int, spans: Spans, group: str
    ) -> Array:
        """What was read of a tensor as what it stands for and with what is added to it, in the
        dtype that sums have."""
        dtype = source.working_dtype
        cast_function(source.dtype, dtype)(numbers, out)
        if (scaled := source.scaled) is not None:
            scales = self.held.get(
                scaled, scale_bytes(scaled), lambda: Scales(source, scaled, self.read_whole)
            )
            if undefined := scales.apply(out, start, spans):
                self.audit.add(
                    group, source.dtype, dtype, CastCount(undefined, undefined=undefined)
                )
        if (plus := source.plus) is not None:
            addend = self.held.get(
                plus, factor_bytes(plus, dtype), lambda: Addend(plus, dtype, self.read_whole)
            )
            addend.add(out, start, spans)
        return out

    def read_whole(self, entry: TensorEntry) -> Array:
        """The bytes of a small tensor."""
        raw = np.empty(entry.nbytes, np.uint8)
        read_range(entry, 0, raw.data, self.descriptors.source(entry.path))
        return raw


def _without_gaps(transfer: Transfer) -> tuple[int, ...]:
    """Strides of a source without gaps, its axes nested as they were."""
    strides = [0] * len(transfer.shape)
    run = 1
    for axis in sorted(range(len(transfer.shape)), key=lambda axis: transfer.from_[axis]):
        strides[axis] = run
        run *= transfer.shape[axis]
    return tuple(strides)


def as_numbers(raw: Array, dtype: DType) -> Array:
    """Bytes as numbers: of the dtype itself if it can be cast, else of any of its size; those of
    eight bits as bytes, which are cast by a table."""
    if dtype.itemsize == 1:
        return raw.view(np.uint8)
    return raw.view(numpy_dtype(dtype) if dtype.floating else np.dtype(f"V{dtype.itemsize}"))


@dataclass
class Descriptors:
    """Open files, shared by all workers, and whether these are to stop."""

    targets: Mapping[Path, Writer]
    sources: dict[Path, Reader] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    # Held over loops of many short system calls: two threads in such loops spend their time handing
    # over the interpreter.
    many_calls: threading.Lock = field(default_factory=threading.Lock)
    # Held while a file is written: two threads that write to one file would spin on the system's
    # lock of it.
    writing: Mapping[Path, threading.Lock] = field(init=False)

    def __post_init__(self) -> None:
        self.writing = {path: threading.Lock() for path in self.targets}

    def target(self, path: Path) -> Writer:
        return self.targets[path]

    def source(self, path: Path) -> Reader:
        found = self.sources.get(path)
        if found is None:
            with self.lock:
                if path not in self.sources:
                    self.sources[path] = open_file(path)
                found = self.sources[path]
        return found

    def close(self) -> None:
        """Closes the sources; the targets are another's."""
        for reader in self.sources.values():
            with suppress(OSError):
                reader.close()


class Done(msgspec.Struct, frozen=True):
    """What a run did: the counts of its casts, and the hashes of what was read and written if they
    were wanted."""

    audit: Audit
    hashes: Hashes | None


def run(
    plan: Plan,
    targets: Mapping[Path, Writer],
    budget: Budget,
    progress: Progress | None = None,
    hashing: bool = False,
    journal: Ledger | None = None,
    kept: Kept | None = None,
) -> Done:
    """Writes all tensors of a plan into the open files `targets`, except those `kept`, which
    are there already.

    `progress(done, total)` is called with bytes of output, by one thread at a time. The first error
    of any worker stops all and is raised.
    """
    descriptors = Descriptors(targets)
    schedule = Schedule(plan, budget, hashing, journal, kept or {})
    workers = [Worker(descriptors, budget) for _ in range(budget.workers)]
    try:
        run_workers(
            schedule,
            workers,
            descriptors.stop,
            progress,
            plan.tensor_bytes,
            schedule.finished,
            sum(e.nbytes for e in kept or ()),
        )
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
    stop: threading.Event,
    progress: Progress | None,
    total: int,
    finished: Callable[[object, W], None] | None = None,
    done: int = 0,
) -> Sequence[W]:
    """Each worker takes tasks until there are none; `finished` is notified of each that has been
    done, and by whom, and may add to the queue; `done` counts as progress made before. The first
    error of any sets `stop`, which ends all, and is raised."""
    lock = threading.Lock()

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
                            f"no thread can be started: {error}; raise the system's "
                            "limit of processes."
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
    return workers
