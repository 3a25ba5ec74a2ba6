"""What an adapter adds to a matrix where it is read: scale · B·A."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import astuple

from ckptforge.boxes import Box
from ckptforge.dtypes import DType
from ckptforge.transfers import Transfer
from ckptforge.values import Read, Stored, computing_dtype

if TYPE_CHECKING:
    from ckptforge.steps.addend import Addend

# of a tile: large enough for the calls to cost little, small enough for a core's cache
ROWS, COLUMNS = 32, 1024


Part = tuple[int, int, int]


def rank_of(a: tuple[int, ...], turned: bool) -> int:
    """r, which the rows count of an A of this shape, or its columns where it is `turned`."""
    return a[1 if turned else 0]


def columns_of(a: tuple[int, ...], turned: bool) -> int:
    """The columns of an A of this shape, which are those of the matrix."""
    return a[0 if turned else 1]


class Product(msgspec.Struct, frozen=True, kw_only=True):
    """`scale` · B·A, with A of shape (r, columns) and B of shape (rows, r); `rows` sends rows of B
    to those of the whole matrix. `turned`: both are stored as their transposes. `a_part`, `b_part`:
    a factor is that of what is stored from a row on, and of every so manyth column from one on
    (row, column, step).
    """

    a: Stored
    b: Stored
    scale: float
    rows: Transfer
    turned: bool = False
    a_part: Part | None = None
    b_part: Part | None = None

    @property
    def rank(self) -> int:
        """r."""
        return rank_of(self._a_shape, self.turned)

    @property
    def columns(self) -> int:
        """Columns of A."""
        return columns_of(self._a_shape, self.turned)

    @property
    def _a_shape(self) -> tuple[int, ...]:
        if self.a_part is None:
            return self.a.shape
        row, column, step = self.a_part
        return self.a.shape[0] - row, len(range(column, self.a.shape[1], step))

    @property
    def parted(self) -> tuple[Stored, ...]:
        """The factors that are parts of what is stored, which is read whole."""
        parts = ((self.a, self.a_part), (self.b, self.b_part))
        return tuple(stored for stored, part in parts if part is not None)


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
        rows = height(self)
        columns = max(product.columns for product in self.products) + COLUMNS
        itemsize = self.gives(stored.dtype).itemsize
        parts = sum(stored.elements for one in self.products for stored in one.parted)
        return (2 * sum(one.rank for one in self.products) * (rows + columns) + parts) * itemsize

    def identity(self) -> bytes:
        """Its factors, their scales, and the rows that they are for."""
        found = [repr(("added", self.box)).encode()]
        for one in self.products:
            parts = one.a_part, one.b_part
            how = repr((one.scale, astuple(one.rows), one.turned, *parts)).encode()
            found += [one.a.identity(), one.b.identity(), how]
        return b"".join(found)

    def prepare(self, stored: Stored, read: Read) -> Addend:
        """The factors in memory."""
        from ckptforge.steps.addend import Addend  # which needs numpy

        return Addend(self, self.gives(stored.dtype), read)


def height(step: Added) -> int:
    """Rows of the whole matrix, up to a multiple of those of a tile."""
    last = max(product.rows.last_target for product in step.products)
    return -(-max(step.box[0][1], last + 1) // ROWS) * ROWS
