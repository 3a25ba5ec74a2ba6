"""Numbers of whole blocks, with the memory in which their codes are made."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.run.audit import CastCount
from ckptforge.run.buffers import Buffers
from ckptforge.steps.encoded import Code
from ckptforge.steps.rounding import round_magnitudes, with_signs

Array = NDArray[Any]
_SHORT = 64  # numbers of a row that numpy's own reductions take long for


class _Memory(threading.local):
    """A thread's, which is used again: fresh memory costs more than what is done in it."""

    def __init__(self) -> None:
        self._buffers = Buffers()
        self._shape: tuple[int, ...] = ()
        self._lent: list[Array] = []

    def lend(self, shape: tuple[int, ...]) -> list[Array]:
        """Five arrays of float32, and three of bytes."""
        if shape != self._shape:
            size = math.prod(shape)
            lent = self._buffers.lend(*5 * [(4 * size, 0)], *3 * [(size, 0)])
            floats = [one.view(np.float32).reshape(shape) for one in lent[:5]]
            self._lent, self._shape = [*floats, *(one.reshape(shape) for one in lent[5:])], shape
        return self._lent


_memory = _Memory()


class Piece:
    """A window of numbers, of float32 or of a dtype that it holds, in blocks of `rows` × `columns`:
    one row of them, or any number of rows where blocks have one. Good until the thread makes
    another."""

    def __init__(self, numbers: Array, rows: int, columns: int) -> None:
        self._columns, self._flat = columns, rows > 1
        self._starts = np.arange(0, numbers.shape[1], columns)
        lent = _memory.lend(numbers.shape)
        wide, self._scaled, self._near, self._sums, self._other, *lent_bytes = lent
        self.codes, self._bytes, flags = lent_bytes
        self._flags = flags.view(np.bool_)
        self._numbers = numbers
        if numbers.dtype != np.float32:
            np.copyto(wide, numbers, casting="unsafe")
            self._numbers = wide

    def largest(self) -> Array:
        """The largest magnitude of each block, [rows of blocks, blocks]; NaN if there is one."""
        magnitudes = np.abs(self._numbers, out=self._scaled)
        if self._flat:
            return np.maximum.reduceat(np.maximum.reduce(magnitudes, axis=0), self._starts)[None]
        blocks, free = magnitudes.reshape(-1), self._near.reshape(-1)
        columns = self._columns
        while columns % 2 == 0 and self._columns <= _SHORT:  # of two the larger
            half = blocks.size // 2
            blocks = np.maximum(blocks[0::2], blocks[1::2], out=free[:half])
            free, columns = free[half:], columns // 2
        return np.asarray(blocks.reshape(len(magnitudes), -1, columns).max(axis=2))

    def round(self, code: Code, scales: Array) -> CastCount:
        """Makes the codes of all numbers, whose magnitudes have been looked at, with the scale of
        each block. Returns what that did, measured before the scales, so that nothing is too small
        for it."""
        scaled, near, work = self._scaled, self._near, (self._sums, self._other)
        np.divide(scaled, self._spread(scales), out=scaled)
        round_magnitudes(code, scaled, near, work, self.codes)
        zeros = self._zeros()
        np.signbit(self._numbers, out=self._flags)
        with_signs(code, self.codes, self._flags, self._bytes)
        errors = np.subtract(near, scaled, out=near)
        changed = int(np.count_nonzero(np.not_equal(errors, 0, out=self._flags)))
        weights = np.square(scales, dtype=np.float64)
        error, square = self._squares(errors), self._squares(scaled)
        worst = np.divide(error, square, out=np.zeros_like(error), where=square > 0)
        return CastCount(
            values=scaled.size,
            underflowed=zeros,
            rounded=changed - zeros,
            error=float((error * weights).sum()),
            square=float((square * weights).sum()),
            worst=float(worst.max()),
        )

    def _spread(self, scales: Array) -> Array:
        """A scale for each number, of its block; of blocks of many rows for those of one."""
        if self._flat:
            wide = np.repeat(scales, self._columns, axis=1)
            return np.asarray(wide[:, : self._scaled.shape[1]])
        spread = self._sums.reshape(*scales.shape, -1)
        np.copyto(spread, scales[:, :, None])
        return self._sums

    def _zeros(self) -> int:
        """How many numbers that aren't 0 have a code that is."""
        others = int(np.count_nonzero(self.codes))
        if others == self.codes.size:
            return 0
        # of bools, which are counted ten times as fast
        return int(np.count_nonzero(np.not_equal(self._scaled, 0, out=self._flags))) - others

    def _squares(self, numbers: Array) -> Array:
        """The sum of the squares of each block."""
        if self._flat:
            sums = np.einsum("rc,rc->c", numbers, numbers)
            return np.add.reduceat(sums, self._starts)[None]
        blocks = numbers.reshape(len(numbers), -1, self._columns)
        return np.asarray(np.einsum("rbc,rbc->rb", blocks, blocks))
