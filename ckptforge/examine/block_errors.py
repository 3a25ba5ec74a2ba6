"""How far tensors are from others that were quantised: by kind, and in the worst block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ckptforge.dtypes import BY_NAME
from ckptforge.examine.differences import Pair
from ckptforge.planning.lower import in_memory
from ckptforge.run.audit import CastCount
from ckptforge.run.bands import block_tiles, flat
from ckptforge.run.budget import Budget
from ckptforge.run.pool import run_tasks
from ckptforge.run.run import cache_bytes
from ckptforge.run.tiles import Tile
from ckptforge.run.worker import Worker
from ckptforge.values import Value

Array = NDArray[Any]
Block = tuple[int, int]

_EACH = 40  # bytes of a number: on both sides, and its error and square in float64
_FLOAT32 = BY_NAME["float32"]


@dataclass(frozen=True)
class BlockError:
    """What quantisation did to the tensors of a kind: ‖b - a‖₂ / ‖a‖₂ of all their numbers, and of
    the block where it is largest, with the tensor that holds it."""

    kind: str
    tensors: int
    values: int
    relative_error: float | None
    worst_block: float
    worst_tensor: str


def block_errors(
    mine: Mapping[str, Value],
    theirs: Mapping[str, Value],
    blocks: Mapping[str, Block],
    budget: Budget,
) -> list[BlockError]:
    """The errors of those of their tensors that `blocks` names, with the [rows, columns] that share
    a scale. Reads both sides once."""
    pairs = [(name, _pair(name, mine[name], theirs[name])) for name in blocks if name in mine]
    sides = [side for _, pair in pairs for side in (pair.one, pair.other)]
    budget = budget.caching(cache_bytes(sides)).halved
    found = {name: CastCount() for name, _ in pairs}
    tasks = (task for name, pair in pairs for task in _tasks(name, pair, blocks[name], budget))
    run_tasks(tasks, budget, lambda task, count: found[task.name].add(count))
    kinds: dict[str, list[str]] = {}
    for name, pair in pairs:
        kinds.setdefault(pair.one.kind, []).append(name)
    return [_of_kind(kind, names, found) for kind, names in kinds.items()]


def _of_kind(kind: str, names: list[str], found: Mapping[str, CastCount]) -> BlockError:
    total = CastCount()
    for name in names:
        total.add(found[name])
    worst = max(names, key=lambda name: found[name].worst)
    return BlockError(
        kind, len(names), total.values, total.relative_error, total.worst_block, worst
    )


def _pair(name: str, one: Value, other: Value) -> Pair:
    sides = (in_memory(name, replace(side, dtype=_FLOAT32)) for side in (one, other))
    return Pair(*sides)


def _tasks(name: str, pair: Pair, block: Block, budget: Budget) -> Iterator[_Errors]:
    shape = pair.other.place.shape
    fragments = [one for side in (pair.one, pair.other) for one in side.fragments]
    most = budget.bytes_each * 3 // 4 // _EACH
    tiles = block_tiles(shape, block, fragments, most)
    if tiles is None:  # one scale for more than fits: by rows, or by less
        block = (1, min(shape[-1], most))
        tiles = block_tiles(shape, block, fragments, most) or []
    for tile in tiles:
        yield _Errors(name, pair, tile, flat(tile, shape, fragments), block)


class _Errors(msgspec.Struct, frozen=True):
    """The errors of the blocks in a tile."""

    name: str
    pair: Pair
    tile: Tile
    window: Tile
    block: Block
    nbytes: int = 0

    def do(self, worker: Worker) -> CastCount:
        """Reads it on both sides."""
        a, b = (
            worker.assembler.assemble(side, self.window, other=other).view(np.float32)
            for side, other in ((self.pair.one, False), (self.pair.other, True))
        )
        shape = -1, self.tile.columns
        return count_errors(a.reshape(shape), b.reshape(shape), self.block)


def count_errors(numbers: Array, made: Array, block: Block) -> CastCount:
    """What numbers became in blocks of [rows, columns]; those that aren't finite on both sides
    count as the same."""
    with np.errstate(invalid="ignore"):
        gaps = np.subtract(made, numbers, dtype=np.float64)
    squares = np.square(numbers, dtype=np.float64)
    odd = ~(np.isfinite(gaps) & np.isfinite(squares))
    gaps[odd] = squares[odd] = 0
    errors = by_block(np.add, np.square(gaps, out=gaps), block)
    sums = by_block(np.add, squares, block)
    worst = np.divide(errors, sums, out=np.zeros_like(errors), where=sums > 0)
    return CastCount(
        values=numbers.size,
        error=float(errors.sum()),
        square=float(sums.sum()),
        worst=float(worst.max(initial=0.0)),
    )


def by_block(operation: np.ufunc, numbers: Array, block: Block) -> Array:
    """One number for each block of a matrix; those at its edges may be smaller."""
    rows, columns = numbers.shape
    found = numbers
    if block[0] > 1:
        found = operation.reduceat(found, np.arange(0, rows, block[0]), axis=0)
    if columns % block[1] == 0:
        return np.asarray(operation.reduce(found.reshape(len(found), -1, block[1]), axis=2))
    return np.asarray(operation.reduceat(found, np.arange(0, columns, block[1]), axis=1))
