"""Fingerprints of tensors: equal ones are found without comparing each with each."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from ckptforge.planning.assembly import Assembly
from ckptforge.planning.lower import in_memory
from ckptforge.run.budget import Budget
from ckptforge.run.casts import STEP
from ckptforge.run.pool import run_tasks
from ckptforge.run.run import cache_bytes
from ckptforge.run.tasks import tiles_of
from ckptforge.run.tiles import Tile
from ckptforge.run.worker import Worker
from ckptforge.values import Value

_MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


class Fingerprint(msgspec.Struct, frozen=True):
    """64 bits that stand for a tensor's contents, and for those of its transpose (of matrices, else
    the same)."""

    straight: int
    transposed: int


def fingerprints(values: Mapping[str, Value], budget: Budget) -> dict[str, Fingerprint]:
    """Name → fingerprint of what these values are, in their order."""
    sums = {name: [0, 0] for name in values}

    def add(task: _Print, made: tuple[int, int]) -> None:
        held = sums[task.assembly.place.name]
        held[:] = ((a + b) % 2**64 for a, b in zip(held, made, strict=True))

    assemblies = [in_memory(name, value) for name, value in values.items()]
    budget = budget.caching(cache_bytes(values.values()))
    queue = (_Print(one, tile) for one in assemblies for tile in tiles_of(budget, one))
    run_tasks(queue, budget, add)
    return {name: Fingerprint(*both) for name, both in sums.items()}


class _Print(msgspec.Struct, frozen=True):
    """The fingerprint of a tile."""

    assembly: Assembly
    tile: Tile
    nbytes: int = 0

    def do(self, worker: Worker) -> tuple[int, int]:
        """(the sum of its numbers with their places, the same with those of the transpose)."""
        shape, tile = self.assembly.place.shape, self.tile
        size = self.assembly.place.dtype.itemsize
        made = worker.assembler.assemble(self.assembly, tile)
        bits = made.view(f"u{size}") if size in (1, 2, 4, 8) else made.reshape(-1, size)[:, 0]
        straight = transposed = 0
        for start in range(0, tile.elements, STEP):
            stop = min(start + STEP, tile.elements)
            position = np.arange(start, stop, dtype=np.uint64)
            rows, columns = np.divmod(position, np.uint64(tile.columns))
            flat = (
                (rows + np.uint64(tile.r0)) * np.uint64(tile.width) + columns + np.uint64(tile.c0)
            )
            numbers = bits[start:stop].astype(np.uint64)
            straight = (straight + _mixed(numbers, flat)) % 2**64
            if len(shape) == 2:
                row, column = np.divmod(flat, np.uint64(shape[1]))
                flat = column * np.uint64(shape[0]) + row
            transposed = (transposed + _mixed(numbers, flat)) % 2**64
        return straight, transposed


def _mixed(numbers: NDArray[np.uint64], flat: NDArray[np.uint64]) -> int:
    """Sum of a 64-bit mix (the finaliser of splitmix64) of each number with its place."""
    first, second, third = (np.uint64(constant) for constant in _MIX)
    with np.errstate(over="ignore"):
        z = (numbers + np.uint64(1)) * first ^ (flat + np.uint64(1)) * second
        z = (z ^ (z >> np.uint64(30))) * second
        z = (z ^ (z >> np.uint64(27))) * third
        z ^= z >> np.uint64(31)
        return int(z.sum(dtype=np.uint64))
