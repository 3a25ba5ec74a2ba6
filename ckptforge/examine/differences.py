"""Comparing instead of writing: the tiles of tensors as two sides make them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ckptforge.dtypes import DType
from ckptforge.planning.assembly import Assembly
from ckptforge.planning.lower import in_memory
from ckptforge.run.budget import Budget
from ckptforge.run.casts import STEP, numpy_dtype
from ckptforge.run.pool import Progress, Task, run_tasks
from ckptforge.run.run import cache_bytes
from ckptforge.run.tasks import tiles_of
from ckptforge.run.tiles import Tile
from ckptforge.run.worker import Worker
from ckptforge.transfers import Transfer
from ckptforge.values import Value

Array = NDArray[Any]
Index = tuple[int, ...]


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
        """Adds what differs in another part."""
        self.elements += other.elements
        self.count += other.count
        self.max_abs = max(self.max_abs, other.max_abs)
        self.square += other.square
        self.reference += other.reference
        self.nonfinite += other.nonfinite
        if other.first is not None and (self.first is None or other.first < self.first):
            self.first, self.first_source = other.first, other.first_source


class Pair(msgspec.Struct, frozen=True):
    """A tensor as two sides make it, of one shape."""

    one: Assembly
    other: Assembly

    @property
    def name(self) -> str:
        """The name that the other side has for it."""
        return self.other.place.name


def differing(
    pairs: Sequence[Pair], budget: Budget, progress: Progress | None = None
) -> dict[str, Difference]:
    """Name → difference, of the tensors that aren't equal: bit by bit where the dtypes are the
    same, else by value (NaN equals NaN). Reads both sides once, and those that differ once more for
    the figures."""
    total = sum(pair.other.place.nbytes for pair in pairs)
    unequal: set[str] = set()

    def note(task: _Equality, same: bool) -> None:
        if not same:
            unequal.add(task.pair.name)

    tiles = ((pair, tile) for pair in pairs for tile in _tiles(pair, budget))
    queue: Iterator[Task] = (_Equality(pair, tile, unequal) for pair, tile in tiles)
    _run(queue, pairs, budget, note, lambda done: progress(done, total) if progress else None)
    again = [pair for pair in pairs if pair.name in unequal]
    found = {pair.name: Difference() for pair in again}
    tiles = ((pair, tile) for pair in again for tile in _tiles(pair, budget))
    queue = (_Measurement(pair, tile) for pair, tile in tiles)
    _run(queue, again, budget, lambda task, difference: found[task.pair.name].add(difference))
    return {name: difference for name, difference in found.items() if difference.count}


def unlike(pairs: Mapping[tuple[str, str], tuple[Value, Value]], budget: Budget) -> dict[str, str]:
    """Name of a first tensor → that of the second, of tensors that should hold the same and
    don't."""
    made = [
        Pair(in_memory(original, values[1]), in_memory(copy, values[0]))
        for (copy, original), values in pairs.items()
        if values[0].shape == values[1].shape
    ]
    found = differing(made, budget)
    return {
        copy: original
        for (copy, original), values in pairs.items()
        if copy in found or values[0].shape != values[1].shape
    }


def _tiles(pair: Pair, budget: Budget) -> Iterator[Tile]:
    return tiles_of(budget.halved, pair.one, pair.other)


def _run(
    queue: Iterator[Task],
    pairs: Sequence[Pair],
    budget: Budget,
    finished: Callable[[Any, Any], None],
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    if not pairs:
        return
    sides = [side for pair in pairs for side in (pair.one, pair.other)]
    run_tasks(queue, budget.caching(cache_bytes(sides)).halved, finished, progress)


class _Equality(msgspec.Struct, frozen=True):
    """Whether a tile is the same on both sides; nothing is read for one that is known to
    differ."""

    pair: Pair
    tile: Tile
    unequal: set[str]

    @property
    def nbytes(self) -> int:
        """The other side's bytes."""
        return self.tile.elements * self.pair.other.place.dtype.itemsize

    def do(self, worker: Worker) -> bool:
        """Reads it on both sides."""
        if self.pair.name in self.unequal:
            return False
        return _equal(*_both(self.pair, self.tile, worker), self.pair)


class _Measurement(msgspec.Struct, frozen=True):
    """The figures of what differs in a tile."""

    pair: Pair
    tile: Tile
    nbytes: int = 0

    def do(self, worker: Worker) -> Difference:
        """Reads it on both sides."""
        pair, tile = self.pair, self.tile
        mine, other = pair.one.place.dtype, pair.other.place.dtype
        total = Difference()
        for start, a, b in _strips(*_both(pair, tile, worker), pair):
            unequal = _unequal(a, b, mine, other)
            piece = Difference(elements=unequal.size, count=int(np.count_nonzero(unequal)))
            values = _values(a, mine), _values(b, other)
            if values[0] is not None and values[1] is not None:
                _measure(values[0], values[1], unequal, piece)
            if piece.count:
                flat = _flat(tile, start + int(np.flatnonzero(unequal)[0]))
                piece.first = _index(flat, pair.other.place.shape)
                piece.first_source = _origin(pair.one, flat)
            total.add(piece)
        return total


def _both(pair: Pair, tile: Tile, worker: Worker) -> tuple[Array, Array]:
    made = worker.assembler.assemble(pair.one, tile)
    return made, worker.assembler.assemble(pair.other, tile, other=True)


def _equal(made: Array, theirs: Array, pair: Pair) -> bool:
    mine, other = pair.one.place.dtype, pair.other.place.dtype
    if mine == other:
        return bool(np.array_equal(made, theirs))
    return not any(_unequal(a, b, mine, other).any() for _, a, b in _strips(made, theirs, pair))


def _strips(made: Array, theirs: Array, pair: Pair) -> Iterator[tuple[int, Array, Array]]:
    """(first number, the bytes of some on both sides), which stay in a core's cache."""
    mine, other = pair.one.place.dtype.itemsize, pair.other.place.dtype.itemsize
    for start in range(0, len(made) // mine, STEP):
        stop = start + STEP
        yield start, made[start * mine : stop * mine], theirs[start * other : stop * other]


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
    if dtype.numpy is None or not dtype.numpy.startswith(("int", "uint", "bool")):
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


def _flat(tile: Tile, position: int) -> int:
    """Element of a tile → flat element of the tensor that it is a window of."""
    row, column = divmod(position, tile.columns)
    return (tile.r0 + row) * tile.width + tile.c0 + column


def _index(flat: int, shape: Sequence[int]) -> Index:
    index: list[int] = []
    for length in reversed(shape):
        flat, i = divmod(flat, length)
        index.append(i)
    return tuple(reversed(index))


def _origin(assembly: Assembly, flat: int) -> tuple[str, Index] | None:
    """The stored tensor and index that an element of an assembled tensor comes from."""
    for term in assembly.terms:
        for fragment in term.fragments:
            at = _source_of(fragment.transfer, flat)
            if at is not None:
                return fragment.stored.name, _index(at, fragment.stored.shape)
    return None


def _source_of(transfer: Transfer, flat: int) -> int | None:
    rest, at = flat - transfer.target, transfer.source
    if rest < 0:
        return None
    for length, from_, to in sorted(
        zip(transfer.shape, transfer.source_strides, transfer.target_strides, strict=True),
        key=lambda axis: -axis[2],
    ):
        i = min(rest // to, length - 1) if to else 0
        rest -= i * to
        at += i * from_
    return at if rest == 0 else None
