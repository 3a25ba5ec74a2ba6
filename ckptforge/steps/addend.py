"""Adding scale · B·A to a matrix where it is read.

Products are made in tiles at fixed places of the matrix, each by one multiplication of the same
form: how BLAS orders a sum depends on that form, and the result must not depend on how a run cuts
its work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.dtypes import DType
from ckptforge.run.casts import numpy_dtype
from ckptforge.steps.low_rank import COLUMNS, ROWS, Added, Part, height
from ckptforge.values import Read, Window

Array = NDArray[Any]


class Addend:
    """What is to be added to one matrix, its factors in memory."""

    def __init__(self, step: Added, dtype: DType, read: Read) -> None:
        (first_row, _), (first_column, _) = step.box
        self._corner = first_row, first_column
        self._dtype = numpy_dtype(dtype)
        self._products: list[tuple[Array, Array, float, Array]] = []
        for product in step.products:
            a = _part(read(product.a, dtype), product.a_part)
            b = _part(read(product.b, dtype), product.b_part)
            if product.turned:
                a, b = a.T, b.T
            rank, columns = a.shape
            wide = np.zeros((rank, -(-columns // COLUMNS) * COLUMNS), self._dtype)
            wide[:, :columns] = a
            tall = np.zeros((height(step), rank), self._dtype)
            rows = _rows(product.rows.target, product.rows.shape, product.rows.target_strides)
            tall[rows] = b[
                _rows(product.rows.source, product.rows.shape, product.rows.source_strides)
            ]
            touched: Array = np.zeros(len(tall), bool)
            touched[rows] = True
            self._products.append((wide, tall, product.scale, touched))

    def apply(self, numbers: Array, windows: Sequence[Window]) -> int:
        """Adds the products to windows of the matrix."""
        for at, row, count, c0, c1 in windows:
            self._add(
                numbers[at : at + count * (c1 - c0)].reshape(count, c1 - c0),
                row + self._corner[0],
                c0 + self._corner[1],
            )
        return 0

    def _add(self, window: Array, row: int, column: int) -> None:
        bottom, right = row + window.shape[0], column + window.shape[1]
        for i in range(row // ROWS * ROWS, bottom, ROWS):
            r0, r1 = max(i, row), min(i + ROWS, bottom)
            for j in range(column // COLUMNS * COLUMNS, right, COLUMNS):
                c0, c1 = max(j, column), min(j + COLUMNS, right)
                tile = self._tile(i, j)
                if tile is not None:
                    place = window[r0 - row : r1 - row, c0 - column : c1 - column]
                    place += tile[r0 - i : r1 - i, c0 - j : c1 - j]

    def _tile(self, i: int, j: int) -> Array | None:
        """What is to be added to a tile; None for nothing."""
        made: Array | None = None
        for a, b, scale, touched in self._products:
            rows = touched[i : i + ROWS]
            if not rows.any():
                continue
            product = b[i : i + ROWS] @ a[:, j : j + COLUMNS]
            product *= self._dtype.type(scale)
            if made is None and rows.all():
                made = product
                continue
            if made is None:
                # which changes nothing, not even a zero
                made = np.full((ROWS, COLUMNS), -0.0, self._dtype)
            made[rows] += product[rows]
        return made


def _part(factor: Array, part: Part | None) -> Array:
    if part is None:
        return factor
    row, column, step = part
    return factor[row:, column::step]


def _rows(offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> NDArray[np.intp]:
    rows = np.array(offset)
    for n, stride in zip(shape, strides, strict=True):
        rows = rows[..., None] + np.arange(n) * stride
    return rows.reshape(-1)
