"""Adding scale · B·A to a matrix where it is read.

Products are made in tiles at fixed places of the matrix, each by one multiplication of the same
form: how BLAS orders a sum depends on that form, and the result must not depend on how a run cuts
its work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ckptforge.boxes import Box
from ckptforge.dtypes import DType
from ckptforge.run.casts import numpy_dtype
from ckptforge.transfers import Transfer
from ckptforge.values import Read, Stored, Window, computing_dtype

Array = NDArray[Any]
# large enough for the calls to cost little, small enough for a core's cache
_ROWS, _COLUMNS = 32, 1024


class Product(msgspec.Struct, frozen=True, kw_only=True):
    """`scale` · B·A, with A of shape (r, columns) and B of shape (rows, r); `rows` sends rows of B
    to those of the whole matrix. `turned`: both are stored as their transposes."""

    a: Stored
    b: Stored
    scale: float
    rows: Transfer
    turned: bool = False

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[1 if self.turned else 0]

    @property
    def columns(self) -> int:
        """Columns of A, which are those of the matrix."""
        return self.a.shape[0 if self.turned else 1]


class Added(msgspec.Struct, frozen=True, kw_only=True):
    """What is added to a matrix: products, each to some of its rows. The stored tensor is `box` of
    the whole matrix."""

    products: tuple[Product, ...]
    box: Box

    @property
    def inputs(self) -> tuple[Stored, ...]:
        """All factors."""
        return tuple(factor for one in self.products for factor in (one.a, one.b))

    def gives(self, dtype: DType) -> DType:
        """float32, or float64 where the matrix is of that."""
        return computing_dtype((dtype,))

    def memory(self, stored: Stored) -> int:
        """The factors as numbers, and as much again while they are read."""
        rows = _height(self)
        columns = max(product.columns for product in self.products) + _COLUMNS
        itemsize = self.gives(stored.dtype).itemsize
        return 2 * sum(one.rank for one in self.products) * (rows + columns) * itemsize

    def identity(self) -> bytes:
        """Its factors, their scales, and the rows that they are for."""
        found = [repr(("added", self.box)).encode()]
        for one in self.products:
            rows = (
                one.rows.shape,
                one.rows.source,
                one.rows.source_strides,
                one.rows.target,
                one.rows.target_strides,
            )
            found += [
                one.a.identity(),
                one.b.identity(),
                repr((one.scale, rows, one.turned)).encode(),
            ]
        return b"".join(found)

    def prepare(self, stored: Stored, read: Read) -> Addend:
        """The factors in memory."""
        return Addend(self, self.gives(stored.dtype), read)


def _height(step: Added) -> int:
    """Rows of the whole matrix, up to a multiple of those of a tile."""
    last = max(product.rows.last_target for product in step.products)
    return -(-max(step.box[0][1], last + 1) // _ROWS) * _ROWS


class Addend:
    """What is to be added to one matrix, its factors in memory."""

    def __init__(self, step: Added, dtype: DType, read: Read) -> None:
        (first_row, _), (first_column, _) = step.box
        self._corner = first_row, first_column
        self._dtype = numpy_dtype(dtype)
        self._products: list[tuple[Array, Array, float, Array]] = []
        for product in step.products:
            a, b = (read(factor, dtype) for factor in (product.a, product.b))
            if product.turned:
                a, b = a.T, b.T
            rank, columns = a.shape
            wide = np.zeros((rank, -(-columns // _COLUMNS) * _COLUMNS), self._dtype)
            wide[:, :columns] = a
            tall = np.zeros((_height(step), rank), self._dtype)
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
