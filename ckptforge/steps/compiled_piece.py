"""Numbers of whole blocks, whose codes the compiled kernels make."""

from __future__ import annotations

import ctypes
import math
import threading
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.kernels.form import Effects, Form
from ckptforge.run.audit import CastCount
from ckptforge.steps.encoded import Code
from ckptforge.steps.rounding import form_of

Array = NDArray[Any]


class _Memory(threading.local):
    """A thread's, which is used again."""

    def __init__(self) -> None:
        self.codes = np.empty(0, np.uint8)


_memory = _Memory()


class CompiledPiece:
    """What `Piece` is, and does, in one pass for the magnitudes and one for the codes."""

    def __init__(self, kernels: ctypes.CDLL, numbers: Array, rows: int, columns: int) -> None:
        if numbers.strides[1] != numbers.itemsize or numbers.strides[0] % numbers.itemsize:
            numbers = np.ascontiguousarray(numbers)
        self._kernels, self._numbers = kernels, numbers
        height, width = numbers.shape
        self._window = (
            numbers.ctypes.data,
            int(numbers.dtype == np.float32),
            height,
            width,
            numbers.strides[0] // numbers.itemsize,
            rows,
            columns,
        )
        self._blocks = -(-height // rows), -(-width // columns)
        if _memory.codes.size < numbers.size:
            _memory.codes = np.empty(numbers.size, np.uint8)
        self.codes = _memory.codes[: numbers.size].reshape(numbers.shape)

    def largest(self) -> Array:
        """The largest magnitude of each block, [rows of blocks, blocks]; one that isn't finite if
        it holds such numbers."""
        found = np.empty(self._blocks, np.float32)
        self._kernels.ckptforge_largest(*self._window, found.ctypes.data)
        return found

    def round(self, code: Code, scales: Array) -> CastCount:
        """Makes the codes of all numbers with the scale of each block. Returns what that did."""
        effects = Effects()
        scales = np.ascontiguousarray(scales, np.float32)
        places = scales.ctypes.data, _form(code), self.codes.ctypes.data, effects
        self._kernels.ckptforge_round(*self._window, *places)
        return CastCount(
            values=self._numbers.size,
            underflowed=effects.zeros,
            rounded=effects.changed - effects.zeros,
            error=effects.error,
            square=effects.square,
            worst=effects.worst,
        )


@cache
def _form(code: Code) -> Form:
    if not code.dtype.floating:
        return Form(0.0, math.inf, 0, 0, 0)
    shift, smallest, least = form_of(code)
    cap = math.inf if code.powers is None else code.largest
    return Form(float(smallest), cap, shift, int(least), 0x80 >> 8 - 8 // code.dtype.per_byte)
