"""What each of the 256 codes of a byte stands for, block by block: of large blocks this is faster
looked up than computed."""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.dtypes import DType
from ckptforge.kernels.library import library
from ckptforge.run.audit import CastCount
from ckptforge.run.casts import (
    OVERFLOW,
    ROUNDED,
    UNDERFLOW,
    cast_function,
    effects_of,
    numpy_dtype,
)

Array = NDArray[Any]
_CODES = 256
_ABOVE = np.uint32(16)
_PIECE = 1 << 19  # codes that are looked up at a time


class _Memory(threading.local):
    """A thread's, which is used again."""

    def __init__(self) -> None:
        self._places, self._found = np.empty(0, np.intp), np.empty(0, np.uint32)
        self._flags = np.empty(0, np.bool_)

    def lend(self, size: int) -> tuple[Array, Array, Array]:
        """Places in tables, what is found there, and flags."""
        if len(self._places) < size:
            self._places, self._found = np.empty(size, np.intp), np.empty(size, np.uint32)
            self._flags = np.empty(size, np.bool_)
        return self._places[:size], self._found[:size], self._flags[:size]


_memory = _Memory()


@cache
def every_code(stored: DType, made: DType) -> Array:
    """What all codes stand for without scales."""
    codes, numbers = np.arange(_CODES, dtype=np.uint8), np.empty(_CODES, numpy_dtype(made))
    cast_function(stored, made)(codes, numbers)
    return numbers


class Tables:
    """For each block, in rows of blocks, what codes stand for: `numbers` of `source`, [rows,
    blocks, codes], cast to a `target` of 16 bits."""

    def __init__(self, numbers: Array, source: DType, target: DType) -> None:
        flat = numbers.reshape(-1)
        made = np.empty(flat.size, numpy_dtype(target))
        cast_function(source, target)(flat, made)
        self._effects = effects_of(flat, made)
        self._mild = bool(self._effects.max() <= ROUNDED)
        self._blocks = numbers.shape[1]
        # What it did lies above what it made, so that both are found at once.
        self._table = made.view(np.uint16) | self._effects.astype(np.uint32) << _ABOVE
        self._kernels = library()

    def decode(self, codes: Array, rows: Array, blocks: Array, out: Array) -> CastCount:
        """Looks up flat codes, of rows of numbers that lie in these rows of blocks, and of each of
        which the columns lie in these `blocks`."""
        if self._kernels is not None:
            return self._look_up(self._kernels, codes, rows, blocks, out)
        count, across = CastCount(), _CODES * blocks if self._blocks > 1 else None
        starts = _CODES * self._blocks * rows[:, None] if rows.any() else None
        step = max(_PIECE // len(blocks), 1)
        made = out.view(np.uint16)
        for first in range(0, len(rows), step):
            piece = slice(first * len(blocks), (first + step) * len(blocks))
            places, found, flags = _memory.lend(codes[piece].size)
            matrix = places.reshape(-1, len(blocks))
            np.copyto(places, codes[piece])
            if across is not None:
                np.add(matrix, across, out=matrix)
            if starts is not None:
                np.add(matrix, starts[first : first + step], out=matrix)
            np.take(self._table, places, out=found, mode="clip")
            np.copyto(made[piece], found, casting="unsafe")
            count.add(self._count(places, found, flags))
        return count

    def _look_up(
        self, kernels: ctypes.CDLL, codes: Array, rows: Array, blocks: Array, out: Array
    ) -> CastCount:
        assert out.flags.c_contiguous and out.size == codes.size
        codes, effects = np.ascontiguousarray(codes), np.zeros(4, np.int64)
        lines, columns = (np.ascontiguousarray(one, np.intp) for one in (rows, blocks))
        kernels.ckptforge_look_up(
            codes.ctypes.data,
            len(lines),
            len(columns),
            lines.ctypes.data,
            columns.ctypes.data,
            self._blocks,
            self._table.ctypes.data,
            out.ctypes.data,
            effects.ctypes.data,
        )
        counts = (int(effects[one]) for one in (OVERFLOW, UNDERFLOW, ROUNDED))
        return CastCount(codes.size, *counts)

    def _count(self, places: Array, found: Array, flags: Array) -> CastCount:
        if self._mild:
            rounded = np.greater_equal(found, np.uint32(ROUNDED) << _ABOVE, out=flags)
            return CastCount(found.size, rounded=int(np.count_nonzero(rounded)))
        held = np.bincount(places, minlength=len(self._table))
        counts = (int(held[self._effects == one].sum()) for one in (OVERFLOW, UNDERFLOW, ROUNDED))
        return CastCount(found.size, *counts)
