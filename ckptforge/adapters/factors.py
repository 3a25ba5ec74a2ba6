"""The two factors of one weight's adapter, and how their rows lie in another layout."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ckptforge.tables.axes import Pattern
from ckptforge.tables.lora import AdaptedWeight
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Table
from ckptforge.transfers import Transfer
from ckptforge.values import Value

Lengths = dict[str, dict[str, int]]  # logical tensor → axis → length
Index = tuple[tuple[str, int], ...]  # (axis, number) of the axes in a weight's name, sorted


class Factors(msgspec.Struct, frozen=True):
    """The adapter of one stored weight: A of shape (r, in), B of shape (out, r), and what their
    product is multiplied with. Both are stored as their transposes where the weight says so."""

    weight: AdaptedWeight
    index: Index
    a: Value
    b: Value
    scale: float

    @property
    def turned(self) -> bool:
        """Whether both factors are stored as their transposes."""
        return self.weight.turned

    @property
    def rank(self) -> int:
        """r, which A's rows and B's columns count."""
        return self.a.shape[1 if self.turned else 0]

    @property
    def columns(self) -> int:
        """Columns of A, which are those of the weight."""
        return self.a.shape[0 if self.turned else 1]

    @property
    def height(self) -> int:
        """Rows of B, which are those of the weight."""
        return self.b.shape[1 if self.turned else 0]

    def rows_as(self, rows: Pattern) -> bool:
        """Whether a weight whose rows these are has the same ones in the same order."""
        return self.weight.rows.axes == rows.axes


def row_lengths(
    table: Table, sizes: AxisSizes, found: Mapping[str, Factors], rows: Pattern
) -> Lengths:
    """Logical tensor → length of each axis that is rows, of what a weight and its adapters hold.
    Raises `ConfigError` for one that nothing tells."""
    lengths: Lengths = {}
    for one in found.values():
        for part in one.weight.rows.tensors:
            lengths[part] = sizes.telling(
                table, part, one.weight.rows, rows, (one.height,), one.weight.rows.factors(part)
            )
    for part in rows.tensors:
        if part not in lengths:
            lengths[part] = sizes.telling(table, part, rows, rows, (0,), rows.factors(part))
    return lengths


def row_count(rows: Pattern, lengths: Lengths) -> int:
    """Rows of a weight, and so of its B."""
    return rows.shape(lambda part, axis: lengths[part][axis])[0]


def row_transfer(tensor: str, one: Factors, rows: Pattern, lengths: Lengths) -> Transfer:
    """Rows of B → rows of another layout's weight, for the part of a logical tensor, or all."""
    if one.rows_as(rows):
        return Transfer((one.height,), 0, (1,), 0, (1,))
    axes = one.weight.rows.factors(tensor)

    def size(part: str, axis: str) -> int:
        return lengths[part][axis]

    source, target = (p.place(tensor, axes, size) for p in (one.weight.rows, rows))
    shape = tuple(lengths[tensor][axis] for axis in axes)
    return Transfer(shape, source.offset, source.strides, target.offset, target.strides)
