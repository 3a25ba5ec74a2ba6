"""The two factors of one weight's adapter, and how their rows lie in another layout."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ckptforge.boxes import Transfer
from ckptforge.formats.entry import TensorEntry
from ckptforge.mapping.lora import AdaptedWeight
from ckptforge.mapping.sizes import AxisSizes
from ckptforge.mapping.table import Table

Lengths = dict[str, dict[str, int]]  # logical tensor → axis → length
Index = tuple[tuple[str, int], ...]  # (axis, number) of the axes in a weight's name, sorted


class Factors(msgspec.Struct, frozen=True):
    """The adapter of one stored weight: A of shape (r, in), B of shape (out, r), and what their product is multiplied with."""

    weight: AdaptedWeight
    index: Index
    a: TensorEntry
    b: TensorEntry
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def rows_as(self, weight: AdaptedWeight) -> bool:
        """Whether a weight of another layout has the same rows in the same order."""
        return self.weight.rows.axes == weight.rows.axes


def row_lengths(table: Table, sizes: AxisSizes, found: Mapping[str, Factors], weight: AdaptedWeight) -> Lengths:
    """Logical tensor → length of each axis that is rows, of what a weight and its adapters hold. Raises `ConfigError` for one that
    nothing tells."""
    lengths: Lengths = {}
    for one in found.values():
        for part in one.weight.rows.tensors:
            lengths[part] = sizes.telling(table, part, one.weight.rows, weight.rows, one.b.shape[:1], one.weight.rows.factors(part))
    for part in weight.rows.tensors:
        if part not in lengths:
            lengths[part] = sizes.telling(table, part, weight.rows, weight.rows, (0,), weight.rows.factors(part))
    return lengths


def row_count(weight: AdaptedWeight, lengths: Lengths) -> int:
    """Rows of a weight, and so of its B."""
    return weight.rows.shape(lambda part, axis: lengths[part][axis])[0]


def row_transfer(tensor: str, one: Factors, weight: AdaptedWeight, lengths: Lengths) -> Transfer:
    """Rows of B → rows of a weight in another layout, for the part of a logical tensor; for all where both order them alike."""
    if one.rows_as(weight):
        return Transfer((one.b.shape[0],), 0, (1,), 0, (1,))
    axes = one.weight.rows.factors(tensor)
    source, target = (rows.place(tensor, axes, lambda part, axis: lengths[part][axis]) for rows in (one.weight.rows, weight.rows))
    return Transfer(tuple(lengths[tensor][axis] for axis in axes), source.offset, source.strides, target.offset, target.strides)
