"""How two tensors lie to each other as vectors: their norms, and the angle between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from ckptforge.planning.assembly import Assembly
from ckptforge.planning.lower import in_memory
from ckptforge.run.budget import Budget
from ckptforge.run.casts import numpy_dtype
from ckptforge.run.pool import Progress, run_tasks
from ckptforge.run.run import cache_bytes
from ckptforge.run.tiles import Tile
from ckptforge.run.worker import Worker
from ckptforge.values import Value

_RUN = 1 << 16  # elements that are read at a time, whatever the memory

Products = tuple[float, float, float]  # a·a, b·b, a·b


def products(
    pairs: Mapping[str, tuple[Value, Value]], budget: Budget, progress: Progress | None = None
) -> dict[str, Products]:
    """Name → (a·a, b·b, a·b) of two values of one shape, summed in float64; the same with any
    number of workers. Reads each once."""
    sides = {
        name: (in_memory(name, one), in_memory(name, other)) for name, (one, other) in pairs.items()
    }
    found: dict[str, list[Products]] = {name: [] for name in pairs}
    total = sum(one.place.nbytes for one, _ in sides.values())

    def finished(task: _Product, made: Products) -> None:
        found[task.one.place.name].append(made)

    cached = cache_bytes(side for both in sides.values() for side in both)
    queue = (_Product(one, other, tile) for one, other in sides.values() for tile in _runs(one))
    tell = (lambda done: progress(done, total)) if progress else (lambda done: None)
    run_tasks(queue, budget.caching(cached).halved, finished, tell)
    return {
        name: tuple(math.fsum(part[i] for part in parts) for i in range(3))  # type: ignore[misc]
        for name, parts in found.items()
    }


class _Product(msgspec.Struct, frozen=True):
    """The products of a run of two tensors."""

    one: Assembly
    other: Assembly
    tile: Tile

    @property
    def nbytes(self) -> int:
        """The first one's bytes."""
        return self.tile.elements * self.one.place.dtype.itemsize

    def do(self, worker: Worker) -> Products:
        """Reads both and multiplies them."""
        made = (
            worker.assembler.assemble(self.one, self.tile),
            worker.assembler.assemble(self.other, self.tile, True),
        )
        a, b = (
            raw.view(numpy_dtype(side.place.dtype)).astype(np.float64)
            for raw, side in zip(made, (self.one, self.other), strict=True)
        )
        with np.errstate(all="ignore"):
            return _sum(a * a), _sum(b * b), _sum(a * b)


def _sum(numbers: Any) -> float:
    return float(numbers.sum())


def _runs(assembly: Assembly) -> Iterator[Tile]:
    width = assembly.place.elements
    return (Tile(width, 0, 1, at, min(at + _RUN, width)) for at in range(0, width, _RUN))
