"""Copying between strided views, fast also when their fastest axes differ."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ckptforge.kernels.library import library
from ckptforge.run.buffers import copy_runs
from ckptforge.transfers import Transfer

Array = NDArray[Any]
# Measured best for 2- and 4-byte numbers; the rows of a block lie a cache line further apart than a
# power of two, as the columns of a matrix whose rows lie at multiples of 4 KiB share the same few
# lines of the cache.
_ROWS = 128
_ROW_BYTES = 1024
_LINE = 64
_WORTH = 4096  # elements of a matrix below which blocks cost more than they save


def strided(flat: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """A view of a flat array; offset and strides in elements."""
    return as_strided(flat[offset:], shape, tuple(stride * flat.itemsize for stride in strides))


def copy_strided(source: Array, target: Array, transfer: Transfer) -> None:
    """Copies from flat `source` to flat `target` of one dtype along a coalesced transfer."""
    # As plain integers: numpy copies numbers of other libraries' dtypes one by one, holding the
    # interpreter.
    if source.itemsize in (1, 2, 4, 8):
        source, target = (numbers.view(f"u{numbers.itemsize}") for numbers in (source, target))
    shape, strides = transfer.shape, transfer.source_strides
    out = strided(target, transfer.target, shape, transfer.target_strides)
    numbers = strided(source, transfer.source, shape, strides)
    if shape and strides[-1] == transfer.target_strides[-1] == 1:
        copy_runs(numbers, out)
        return
    inner = next((axis for axis, stride in enumerate(strides[:-1]) if stride == 1), None)
    if inner is None or strides[-1] == 1 or shape[inner] * shape[-1] < _WORTH:
        np.copyto(out, numbers)
        return
    outer: list[Sequence[Any]] = [
        range(n) if axis != inner else (slice(None),) for axis, n in enumerate(shape[:-1])
    ]
    kernels = library()
    if kernels and transfer.target_strides[-1] == 1 and source.itemsize in (1, 2, 4, 8):
        row, column = transfer.target_strides[inner], strides[-1]
        for index in product(*outer):
            places = numbers[index].ctypes.data, column, out[index].ctypes.data, row
            kernels.ckptforge_turn(*places, shape[inner], shape[-1], source.itemsize)
        return
    block = np.empty((_ROWS, (_ROW_BYTES + _LINE) // source.itemsize), source.dtype)
    for index in product(*outer):
        turn(numbers[index], out[index], block)


def turn(source: Array, target: Array, block: Array) -> None:
    """Copies a matrix of contiguous columns into one of contiguous rows, by way of `block`."""
    height = _ROW_BYTES // source.itemsize
    for first in range(0, source.shape[1], _ROWS):
        columns = slice(first, min(first + _ROWS, source.shape[1]))
        for start in range(0, source.shape[0], height):
            rows = slice(start, min(start + height, source.shape[0]))
            piece = block[: columns.stop - first, : rows.stop - start]
            np.copyto(piece, source[rows, columns].T)
            np.copyto(target[rows, columns], piece.T)
