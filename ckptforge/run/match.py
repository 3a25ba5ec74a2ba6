"""Comparing instead of writing: the tiles of a plan against the bytes of tensors that are there
already."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ckptforge.boxes import Box, Transfer, row_major_strides
from ckptforge.dtypes import DType
from ckptforge.formats.entry import TensorEntry, read_range
from ckptforge.planning.plan import Assembly, Pair
from ckptforge.run.budget import Budget
from ckptforge.run.casts import STEP, numpy_dtype
from ckptforge.run.tasks import Fill, fills
from ckptforge.run.worker import Descriptors, Progress, Worker, run_workers
from ckptforge.storage.store import Reader

Array = NDArray[Any]
Index = tuple[int, ...]
_MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@dataclass
class Difference:
    """What differs in one tensor of `elements`: how many, the largest absolute difference, the L2
    norms of the difference and of the first side (over finite numbers), and the first index that
    differs, with the first side's tensor and index there."""

    elements: int = 0
    count: int = 0
    max_abs: float = 0.0
    square: float = 0.0
    reference: float = 0.0
    nonfinite: int = 0
    first: Index | None = None
    first_source: tuple[str, Index] | None = None

    @property
    def relative_l2(self) -> float | None:
        """‖a - b‖₂ / ‖a‖₂; None where a is all zeros or the numbers aren't known."""
        return math.sqrt(self.square / self.reference) if self.reference > 0 else None

    def add(self, other: Difference) -> None:
        self.elements += other.elements
        self.count += other.count
        self.max_abs = max(self.max_abs, other.max_abs)
        self.square += other.square
        self.reference += other.reference
        self.nonfinite += other.nonfinite
        if other.first is not None and (self.first is None or other.first < self.first):
            self.first, self.first_source = other.first, other.first_source


def differing(
    pairs: Sequence[Pair], budget: Budget, progress: Progress | None = None
) -> dict[str, Difference]:
    """Name → difference, of the tensors that aren't equal: bit by bit where the dtypes are the
    same, else by value (NaN equals NaN). Reads both sides once, and those that differ once more for
    the figures."""
    total = sum(pair.entry.nbytes for pair in pairs)
    unequal = _compare(pairs, budget, progress, total, exact=True)
    again = [pair for pair in pairs if pair.entry.name in unequal]
    return _compare(again, budget, None, total, exact=False) if again else {}


def unlike(pairs: Sequence[tuple[TensorEntry, TensorEntry]], budget: Budget) -> dict[str, str]:
    """Name of a first tensor → that of the second, of whole tensors that should hold the same and
    don't."""
    made = []
    for copy, original in pairs:
        if copy.shape != original.shape:
            continue
        strides = row_major_strides(original.shape)
        whole = Transfer(original.shape, 0, strides, 0, strides).ordered()
        target = TensorEntry(copy.name, original.value_dtype, original.shape, Path(), ())
        made.append(Pair(Assembly(target, original.name, ((original, whole),)), copy, None))
    found = differing(made, budget)
    return {
        copy.name: original.name
        for copy, original in pairs
        if copy.name in found or copy.shape != original.shape
    }


def _compare(
    pairs: Sequence[Pair], budget: Budget, progress: Progress | None, total: int, exact: bool
) -> dict[str, Difference]:
    descriptors = Descriptors({})
    against = {pair.assembly.target: pair for pair in pairs}
    found: dict[str, Difference] = {}
    try:
        workers = [
            _Comparer(descriptors, budget, against=against, only_equality=exact)
            for _ in range(budget.workers)
        ]
        queue = fills((pair.assembly for pair in pairs), budget.halved)
        for worker in run_workers(queue, workers, descriptors.stop, progress, total):
            for name, difference in worker.found.items():
                found.setdefault(name, Difference()).add(difference)
    finally:
        descriptors.close()
    return (
        found
        if exact
        else {name: difference for name, difference in found.items() if difference.count}
    )


@dataclass
class _Comparer(Worker):
    against: Mapping[TensorEntry, Pair] = field(default_factory=dict)
    only_equality: bool = True
    found: dict[str, Difference] = field(default_factory=dict)

    def do(self, task: object) -> int:
        assert isinstance(task, Fill)
        pair = self.against[task.assembly.target]
        if self.only_equality and pair.entry.name in self.found:
            return task.tile.elements * pair.entry.dtype.itemsize
        size = task.tile.elements * pair.entry.dtype.itemsize
        made, theirs = self.assemble(
            task,
            (size, pair.entry.file_offset(next(task.tile.runs())[0] * pair.entry.dtype.itemsize)),
        )
        read_tile(task, pair.entry, theirs, self.descriptors.source(pair.entry.path))
        if self.only_equality:
            if not _equal(made, theirs, pair):
                self.found[pair.entry.name] = Difference(count=1)
        else:
            self.measure(task, pair, made, theirs)
        return size

    def measure(self, task: Fill, pair: Pair, made: Array, theirs: Array) -> None:
        mine, other = pair.assembly.target.dtype, pair.entry.dtype
        total = self.found.setdefault(pair.entry.name, Difference())
        for start in range(0, task.tile.elements, STEP):
            stop = min(start + STEP, task.tile.elements)
            a, b = (
                made[start * mine.itemsize : stop * mine.itemsize],
                theirs[start * other.itemsize : stop * other.itemsize],
            )
            unequal = _unequal(a, b, mine, other)
            piece = Difference(elements=stop - start, count=int(np.count_nonzero(unequal)))
            values = _values(a, mine), _values(b, other)
            if values[0] is not None and values[1] is not None:
                _measure(values[0], values[1], unequal, piece)
            if piece.count:
                local = _flat(task, start + int(np.flatnonzero(unequal)[0]))
                piece.first = _index(local, pair.entry.shape, pair.box)
                piece.first_source = _origin(pair.assembly, local)
            total.add(piece)


def read_tile(task: Fill, entry: TensorEntry, into: Array, reader: Reader) -> None:
    """Reads from a tensor what a tile covers of it."""
    itemsize, at = entry.dtype.itemsize, 0
    for first, count in task.tile.runs():
        read_range(entry, first * itemsize, into[at : at + count * itemsize].data, reader)
        at += count * itemsize


def _equal(made: Array, theirs: Array, pair: Pair) -> bool:
    mine, other = pair.assembly.target.dtype, pair.entry.dtype
    if mine == other:
        return bool(np.array_equal(made, theirs))
    for start in range(0, len(made) // mine.itemsize, STEP):
        stop = start + STEP
        a, b = (
            made[start * mine.itemsize : stop * mine.itemsize],
            theirs[start * other.itemsize : stop * other.itemsize],
        )
        if _unequal(a, b, mine, other).any():
            return False
    return True


def _unequal(a: Array, b: Array, mine: DType, other: DType) -> NDArray[np.bool_]:
    if mine == other:
        size = mine.itemsize
        if size in (1, 2, 4, 8):
            return np.asarray(a.view(f"u{size}") != b.view(f"u{size}"))
        return np.asarray((a.reshape(-1, size) != b.reshape(-1, size)).any(axis=1))
    x, y = _values(a, mine), _values(b, other)
    if x is None or y is None:
        return np.ones(len(a) // mine.itemsize, np.bool_)
    return np.asarray((x != y) & ~(np.isnan(x) & np.isnan(y)))


def _values(raw: Array, dtype: DType) -> NDArray[np.float64] | None:
    """Bytes as float64, exact for floats up to 64 bits; None for dtypes that aren't plain
    numbers."""
    if dtype.floating:
        with np.errstate(all="ignore"):
            return raw.view(numpy_dtype(dtype)).astype(np.float64)
    if (
        dtype.numpy is None
        or np.dtype(dtype.numpy if dtype.numpy.startswith(("int", "uint", "bool")) else "V1").kind
        == "V"
    ):
        return None
    return raw.view(dtype.numpy).astype(np.float64)


def _measure(
    a: NDArray[np.float64], b: NDArray[np.float64], unequal: NDArray[np.bool_], into: Difference
) -> None:
    finite = np.isfinite(a) & np.isfinite(b)
    into.nonfinite += int(np.count_nonzero(unequal & ~finite))
    x = np.where(finite, a, 0.0)
    gap = np.abs(x - np.where(finite, b, 0.0))
    if gap.size:
        into.max_abs = float(gap.max())
        into.square = float(gap @ gap)
        into.reference = float(x @ x)


def _flat(task: Fill, position: int) -> int:
    """Element of a tile → flat element of the tensor that it is a window of."""
    tile = task.tile
    row, column = divmod(position, tile.columns)
    return (tile.r0 + row) * tile.width + tile.c0 + column


def _index(flat: int, shape: Sequence[int], box: Box | None) -> Index:
    index: list[int] = []
    for length in reversed(shape):
        flat, i = divmod(flat, length)
        index.append(i)
    index.reverse()
    return (
        tuple(index)
        if box is None
        else tuple(i + lo for i, (lo, _) in zip(index, box, strict=True))
    )


def _origin(assembly: Assembly, flat: int) -> tuple[str, Index] | None:
    """The source tensor and index that an element of an assembled tensor comes from."""
    for source, transfer in assembly.copies:
        at = _source_of(transfer, flat)
        if at is not None:
            return source.label, _index(at, source.shape, None)
    return None


def _source_of(transfer: Transfer, flat: int) -> int | None:
    rest, at = flat - transfer.target, transfer.source
    if rest < 0:
        return None
    for length, from_, to in sorted(
        zip(transfer.shape, transfer.from_, transfer.to, strict=True), key=lambda axis: -axis[2]
    ):
        i = min(rest // to, length - 1) if to else 0
        rest -= i * to
        at += i * from_
    return at if rest == 0 else None


class Fingerprint(msgspec.Struct, frozen=True):
    """64 bits that stand for a tensor's contents, and for those of its transpose (of matrices, else
    the same)."""

    straight: int
    transposed: int


def fingerprints(assemblies: Iterable[Assembly], budget: Budget) -> dict[str, Fingerprint]:
    """Name → fingerprint of tensors as assemblies would make them. Tiles are summed up, so that
    their order doesn't matter."""
    descriptors = Descriptors({})
    found: dict[str, list[int]] = {}
    try:
        workers = [_Printer(descriptors, budget) for _ in range(budget.workers)]
        for worker in run_workers(fills(assemblies, budget), workers, descriptors.stop, None, 0):
            for name, (straight, transposed) in worker.sums.items():
                sums = found.setdefault(name, [0, 0])
                sums[0] = (sums[0] + straight) % 2**64
                sums[1] = (sums[1] + transposed) % 2**64
    finally:
        descriptors.close()
    return {name: Fingerprint(*sums) for name, sums in found.items()}


@dataclass
class _Printer(Worker):
    sums: dict[str, tuple[int, int]] = field(default_factory=dict)

    def do(self, task: object) -> int:
        assert isinstance(task, Fill)
        target, tile = task.assembly.target, task.tile
        size = target.dtype.itemsize
        (made,) = self.assemble(task)
        bits = made.view(f"u{size}") if size in (1, 2, 4, 8) else made.reshape(-1, size)[:, 0]
        straight, transposed = self.sums.get(target.name, (0, 0))
        for start in range(0, tile.elements, STEP):
            stop = min(start + STEP, tile.elements)
            position = np.arange(start, stop, dtype=np.uint64)
            rows, columns = np.divmod(position, np.uint64(tile.columns))
            flat = (
                (rows + np.uint64(tile.r0)) * np.uint64(tile.width) + columns + np.uint64(tile.c0)
            )
            numbers = bits[start:stop].astype(np.uint64)
            straight = (straight + _mixed(numbers, flat)) % 2**64
            if len(target.shape) == 2:
                row, column = np.divmod(flat, np.uint64(target.shape[1]))
                flat = column * np.uint64(target.shape[0]) + row
            transposed = (transposed + _mixed(numbers, flat)) % 2**64
        self.sums[target.name] = straight, transposed
        return 0


def _mixed(numbers: NDArray[np.uint64], flat: NDArray[np.uint64]) -> int:
    """Sum of a 64-bit mix (the finaliser of splitmix64) of each number with its place."""
    first, second, third = (np.uint64(constant) for constant in _MIX)
    with np.errstate(over="ignore"):
        z = (numbers + np.uint64(1)) * first ^ (flat + np.uint64(1)) * second
        z = (z ^ (z >> np.uint64(30))) * second
        z = (z ^ (z >> np.uint64(27))) * third
        z ^= z >> np.uint64(31)
        return int(z.sum(dtype=np.uint64))
