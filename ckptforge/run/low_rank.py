"""Adding scale · B·A to a matrix where it is read.

Products are made in tiles at fixed places of the matrix, each by one multiplication of the same
form: how BLAS orders a sum depends on that form, and the result must not depend on how a run cuts
its work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.boxes import box_shape
from ckptforge.dtypes import DType
from ckptforge.formats.entry import LowRank, TensorEntry
from ckptforge.run.casts import cast_function, numpy_dtype
from ckptforge.run.tiles import Spans, windows

Array = NDArray[Any]
# large enough for the calls to cost little, small enough for a core's cache
_ROWS, _COLUMNS = 32, 1024


def factor_bytes(plus: LowRank, dtype: DType) -> int:
    """Memory that the factors take, as numbers of the dtype that sums have."""
    rows, columns = _height(plus), max(product.columns for product in plus.products) + _COLUMNS
    held = sum(product.rank for product in plus.products) * (rows + columns) * dtype.itemsize
    return 2 * held  # as much again while they are read


def _height(plus: LowRank) -> int:
    """Rows of the whole matrix, up to a multiple of those of a tile."""
    last = max(product.rows.last_target for product in plus.products)
    return -(-max(plus.box[0][1], last + 1) // _ROWS) * _ROWS


class Addend:
    """What is to be added to one matrix, its factors in memory. `read` gives the bytes of a
    tensor."""

    def __init__(self, plus: LowRank, dtype: DType, read: Callable[[TensorEntry], Array]) -> None:
        (first_row, _), (first_column, _) = plus.box
        self._corner, self._columns = (first_row, first_column), box_shape(plus.box)[1]
        self._dtype = numpy_dtype(dtype)
        self._products: list[tuple[Array, Array, float, Array]] = []
        for product in plus.products:
            a, b = (numbers_of(read(factor), factor, dtype) for factor in (product.a, product.b))
            if product.turned:
                a, b = a.T, b.T
            rank, columns = a.shape
            wide = np.zeros((rank, -(-columns // _COLUMNS) * _COLUMNS), self._dtype)
            wide[:, :columns] = a
            tall = np.zeros((_height(plus), rank), self._dtype)
            rows = _rows(product.rows.target, product.rows.shape, product.rows.to)
            tall[rows] = b[_rows(product.rows.source, product.rows.shape, product.rows.from_)]
            touched: Array = np.zeros(len(tall), bool)
            touched[rows] = True
            self._products.append((wide, tall, product.scale, touched))

    def add(self, numbers: Array, start: int, spans: Spans) -> None:
        """Adds to what was read of the matrix: `numbers` are its `spans`, counted from element
        `start`."""
        for at, row, count, c0, c1 in windows(start, spans, self._columns):
            self._add(
                numbers[at : at + count * (c1 - c0)].reshape(count, c1 - c0),
                row + self._corner[0],
                c0 + self._corner[1],
            )

    def _add(self, window: Array, row: int, column: int) -> None:
        bottom, right = row + window.shape[0], column + window.shape[1]
        for i in range(row // _ROWS * _ROWS, bottom, _ROWS):
            r0, r1 = max(i, row), min(i + _ROWS, bottom)
            for j in range(column // _COLUMNS * _COLUMNS, right, _COLUMNS):
                c0, c1 = max(j, column), min(j + _COLUMNS, right)
                tile = self._tile(i, j)
                if tile is not None:
                    place = window[r0 - row : r1 - row, c0 - column : c1 - column]
                    place += tile[r0 - i : r1 - i, c0 - j : c1 - j]

    def _tile(self, i: int, j: int) -> Array | None:
        """What is to be added to a tile; None for nothing."""
        made: Array | None = None
        for a, b, scale, touched in self._products:
            rows = touched[i : i + _ROWS]
            if not rows.any():
                continue
            product = b[i : i + _ROWS] @ a[:, j : j + _COLUMNS]
            product *= self._dtype.type(scale)
            if made is None and rows.all():
                made = product
                continue
            if made is None:
                # which changes nothing, not even a zero
                made = np.full((_ROWS, _COLUMNS), -0.0, self._dtype)
            made[rows] += product[rows]
        return made


def _rows(offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> NDArray[np.intp]:
    rows = np.array(offset)
    for n, stride in zip(shape, strides, strict=True):
        rows = rows[..., None] + np.arange(n) * stride
    return rows.reshape(-1)


def numbers_of(raw: Array, entry: TensorEntry, dtype: DType) -> Array:
    """The bytes of a tensor as numbers of `dtype`, in its shape."""
    numbers = raw.view(numpy_dtype(entry.dtype))
    if entry.dtype != dtype:
        out = np.empty(numbers.size, numpy_dtype(dtype))
        cast_function(entry.dtype, dtype)(numbers, out)
        numbers = out
    return numbers.reshape(entry.shape)
