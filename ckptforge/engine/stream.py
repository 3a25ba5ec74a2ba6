"""The engine: carries out a plan's copies with a fixed memory budget and several workers."""

from __future__ import annotations

import os
import threading
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
from ckptforge.engine.casts import Audit, cast_function, numpy_dtype
from ckptforge.engine.moves import begin_writeback, move_bytes, paired_ranges, write_exactly
from ckptforge.engine.plan import Assembly, Plan
from ckptforge.engine.tiles import Tile, best_form, inside, spans_of, tiles
from ckptforge.engine.transpose import copy_strided, strided
from ckptforge.errors import OutputError, UsageError
from ckptforge.formats.entry import FileIndex, TensorEntry, open_file, read_spans

Array = NDArray[Any]
Progress = Callable[[int, int], None]

DEFAULT_MEMORY = 128 * 1024 * 1024
MIN_MEMORY = 1024 * 1024
_MOVE_BYTES = 8 * 1024 * 1024
_MAX_TILE_BYTES = 16 * 1024 * 1024
# A tile of n elements needs n in the target's dtype, up to 2n as read, gaps included, and n more where they are cast.
_READ_FACTOR = 2
_MANY_CALLS = 16


@dataclass(frozen=True, slots=True)
class Budget:
    """How many workers, and how many bytes of buffers each has."""

    workers: int
    bytes_each: int

    @classmethod
    def of(cls, workers: int | None, memory: int | None) -> Budget:
        """Defaults: one worker per core up to 8, 128 MiB in all. Raises `UsageError` for less than 1 MiB or no worker."""
        memory = DEFAULT_MEMORY if memory is None else memory
        workers = min(8, os.cpu_count() or 1) if workers is None else workers
        if workers < 1:
            raise UsageError(f"--workers {workers}: at least one is needed.")
        if memory < MIN_MEMORY:
            raise UsageError(f"--memory of {memory} bytes is too little: at least 1 MiB is needed.")
        workers = min(workers, memory // MIN_MEMORY)
        return cls(workers, memory // workers)

    @property
    def total(self) -> int:
        return self.workers * self.bytes_each

    def tile_elements(self, source: DType, target: DType) -> int:
        widest = max(source.itemsize, target.itemsize)
        buffers = _READ_FACTOR + 1 + (source != target)
        return max(1, min(self.bytes_each // (buffers * widest), _MAX_TILE_BYTES // widest))


@dataclass(frozen=True, slots=True)
class Move:
    """Bytes that go over as they are."""

    source: TensorEntry
    source_at: int
    target: TensorEntry
    target_at: int
    length: int


@dataclass(frozen=True, slots=True)
class Fill:
    """A tile of an output tensor to be put together from its sources."""

    assembly: Assembly
    tile: Tile
    max_elements: int


@dataclass(frozen=True, slots=True)
class Check:
    """A source file whose stored checksum is to be compared with its contents."""

    file: FileIndex


Task = Move | Fill | Check


def tasks(plan: Plan, budget: Budget) -> Iterator[Task]:
    """The plan cut into what a worker does at a time, in file order."""
    for file in plan.sources:
        if file.checksum is not None:
            yield Check(file)
    yield from fills(plan.assemblies, budget, moves=True)


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
        widest = max((source.dtype for source, _ in assembly.copies), key=lambda dtype: dtype.itemsize)
        limit = budget.tile_elements(widest, target.dtype)
        width, rows, columns = best_form(target.shape, itemsize, tuple(transfer for _, transfer in assembly.copies), limit)
        for tile in tiles(target.shape, width, rows, columns):
            yield Fill(assembly, tile, limit)


@dataclass
class Worker:
    """One thread's buffers, made once, and its counts."""

    descriptors: Descriptors
    budget: Budget
    audit: Audit = field(default_factory=Audit)
    _memory: Array | None = None

    def buffers(self, *sizes: int) -> list[Array]:
        """Byte arrays of these sizes, 64-byte aligned, in the worker's own memory."""
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + -(-size // 64) * 64)
        if self._memory is None or self._memory.size < starts[-1]:
            self._memory = np.empty(max(starts[-1], min(self.budget.bytes_each, 1 << 20)), np.uint8)
        return [self._memory[start : start + size] for start, size in zip(starts, sizes, strict=False)]

    def do(self, task: object) -> int:
        """Carries out a task; returns the bytes of output that it made."""
        if isinstance(task, Check):
            task.file.verify(self.buffers(1 << 20)[0].data)
            return 0
        if isinstance(task, Move):
            self.move(task)
            return task.length
        assert isinstance(task, Fill)
        self.fill(task)
        return task.tile.elements * task.assembly.target.dtype.itemsize

    def move(self, task: Move) -> None:
        source_fd, target_fd = self.descriptors.source(task.source.path), self.descriptors.target(task.target.path)
        buffer = self.buffers(min(self.budget.bytes_each, 1 << 20))[0].data
        move_bytes(task.source, source_fd, task.source_at, task.target, target_fd, task.target_at, task.length, buffer)
        begin_writeback(target_fd, task.target_at, task.length)

    def fill(self, task: Fill) -> None:
        target, tile = task.assembly.target, task.tile
        itemsize = target.dtype.itemsize
        made, _ = self.assemble(task, 0)
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

    def assemble(self, task: Fill, extra: int) -> tuple[Array, Array]:
        """(the bytes of a tile put together, a buffer of `extra` bytes); both are the worker's, until its next task."""
        target, tile = task.assembly.target, task.tile
        itemsize = target.dtype.itemsize
        widest = max(itemsize, *(source.dtype.itemsize for source, _ in task.assembly.copies))
        cast = any(source.dtype != target.dtype for source, _ in task.assembly.copies)
        made, more, read, spare = self.buffers(
            tile.elements * itemsize, extra, _READ_FACTOR * task.max_elements * widest, cast * task.max_elements * widest
        )
        out = as_numbers(made, target.dtype)
        for source, transfer in task.assembly.copies:
            for part in inside(transfer, tile):
                self.gather(source, part, target, task.assembly.group, out, read, spare)
        return made, more

    def gather(self, source: TensorEntry, part: Transfer, target: TensorEntry, group: str, out: Array, read: Array, spare: Array) -> None:
        """Reads one part of a tile, casts it and puts it in its place."""
        itemsize = source.dtype.itemsize
        spans = spans_of(part, read.size // itemsize)
        fd = self.descriptors.source(source.path)
        with self.descriptors.many_calls if spans.count > _MANY_CALLS else nullcontext():
            starts = ((part.source + start) * itemsize for start in spans.starts())
            read_spans(source, starts, spans.length * itemsize, read.data, fd)
        numbers = as_numbers(read[: spans.elements * itemsize], source.dtype)
        packed = Transfer(part.shape, 0, spans.strides, part.target, part.to)
        if source.dtype != target.dtype:
            if spans.elements != part.size:  # gaps must be neither cast nor counted
                dense = as_numbers(spare[: part.size * itemsize], source.dtype)
                packed = _dense(packed)
                np.copyto(strided(dense, 0, part.shape, packed.from_), strided(numbers, 0, part.shape, spans.strides))
                numbers, spare = dense, read
            cast = cast_function(source.dtype, target.dtype)
            packed = packed.coalesced()
            if packed.is_move:
                place = out[packed.target : packed.target + packed.size]
                self.audit.add(group, source.dtype, target.dtype, cast(numbers, place))
                return
            made = as_numbers(spare[: part.size * target.dtype.itemsize], target.dtype)
            self.audit.add(group, source.dtype, target.dtype, cast(numbers, made))
            numbers = made
        copy_strided(numbers, out, packed.coalesced())


def _dense(transfer: Transfer) -> Transfer:
    """The same transfer from a source without gaps, its axes nested as they were."""
    strides = [0] * len(transfer.shape)
    run = 1
    for axis in sorted(range(len(transfer.shape)), key=lambda axis: transfer.from_[axis]):
        strides[axis] = run
        run *= transfer.shape[axis]
    return Transfer(transfer.shape, 0, tuple(strides), transfer.target, transfer.to)


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

    def close(self, keep: Iterable[Path] = ()) -> None:
        """Closes the sources, but for those that are another's."""
        for path, fd in self.sources.items():
            if path not in set(keep):
                os.close(fd)


def run(plan: Plan, targets: Mapping[Path, int], budget: Budget, progress: Progress | None = None) -> Audit:
    """Writes all of a plan's files into the open descriptors `targets`; returns what its casts did.

    `progress(done, total)` is called with bytes of output, by one thread at a time. The first error of any worker stops
    all and is raised.
    """
    total = plan.tensor_bytes
    for file in plan.files:
        try:
            os.ftruncate(targets[file.path], file.size)
        except OSError as error:
            raise OutputError(f"{file.path}: can't be made {file.size} bytes long: {error.strerror}.") from error
        for offset, literal in file.literals:
            write_exactly(targets[file.path], offset, literal, file.path)
    descriptors = Descriptors(targets)
    audit = Audit()
    try:
        for worker in run_workers(tasks(plan, budget), [Worker(descriptors, budget) for _ in range(budget.workers)], progress, total):
            audit.merge(worker.audit)
    finally:
        descriptors.close()
    return audit


class Doer(Protocol):
    """What carries out tasks on one thread; `do` returns the bytes that count as progress."""

    def do(self, task: Any) -> int: ...


W = TypeVar("W", bound=Doer)


def run_workers(queue: Iterator[object], workers: Sequence[W], progress: Progress | None, total: int) -> Sequence[W]:
    """Each worker takes tasks until there are none. The first error of any stops all and is raised."""
    lock, stop = threading.Lock(), threading.Event()
    done = 0

    def take() -> object:
        with lock:
            return None if stop.is_set() else next(queue, None)

    def work(worker: W) -> None:
        nonlocal done
        try:
            while (task := take()) is not None:
                written = worker.do(task)
                if written and progress is not None:
                    with lock:
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
