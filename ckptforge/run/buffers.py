"""A worker's memory: made once, and lent so that it lies as the bytes in the file do."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.run.memory import fresh_memory
from ckptforge.run.pieces import LINE

Array = NDArray[Any]
_NO_BITS = np.uint8(0)


class Buffers:
    """Page-aligned memory that grows to what a task needs and is used again by the next; each array
    lies as the bytes lie in the file, so that the system copies between them fast."""

    def __init__(self) -> None:
        self._memory: Array = np.empty(0, np.uint8)

    def lend(self, *wanted: tuple[int, int]) -> list[Array]:
        """Byte arrays of (size, offset): each at an address that is its file offset modulo `LINE`.
        They are the caller's until the next call."""
        starts: list[int] = []
        end = 0
        for size, offset in wanted:
            # A line after the last: where three arrays begin alike within a page, a processor takes
            # what it reads of one for what it has just written of another. Measured for a sum of
            # 65,536 numbers: 0.72 ns each, and 0.14.
            starts.append(end + LINE * bool(starts) + offset % LINE)
            end = -(-(starts[-1] + size) // LINE) * LINE
        if self._memory.size < end:
            self._memory = np.empty(0, np.uint8)  # the old memory goes before the new comes
            self._memory = np.frombuffer(fresh_memory(end), np.uint8)
        pairs = zip(starts, wanted, strict=True)
        return [self._memory[start : start + size] for start, (size, _) in pairs]


def copy_runs(source: Array, target: Array) -> None:
    """Copies between arrays of one shape and dtype whose last axes are contiguous.

    By numpy's own vector loop: for such runs copyto calls memmove, which is ten times slower (`rep
    movsb` again) where the target doesn't begin with a cache line; measured 94 µs against 9 µs for
    256 KiB.
    """
    np.bitwise_or(source.view(np.uint8), _NO_BITS, out=target.view(np.uint8))
