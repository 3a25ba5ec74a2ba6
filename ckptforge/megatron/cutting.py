"""Which part of a stored tensor a rank has, by the axes that its layout's [shard] rows cut.

A rank's tensor is stored as the layout says, with the lengths that its axes have there: so the two
halves of linear_fc1, and experts whose shape isn't the order of their numbers, need no rule of
their own. Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from ckptforge.errors import ConfigError
from ckptforge.megatron.job import Job, Rank
from ckptforge.spelling import option
from ckptforge.tables.axes import Pattern
from ckptforge.tables.sharding import Cut, Sharding
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Layout, Table
from ckptforge.transfers import Transfer

Ranges = Mapping[str, tuple[int, int]]  # by axis


class RankPart(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank has of a stored tensor: its shape there, and for each logical tensor in it the
    transfer from the whole; None where the rank has all of it. `key` is the same for those that
    have the same part."""

    shape: tuple[int, ...]
    transfers: tuple[Transfer, ...] | None
    key: tuple[tuple[int, int], ...]


class Cutter:
    """Parts of the stored tensors of a layout, by rank."""

    def __init__(self, job: Job, table: Table, layout: Layout, sizes: AxisSizes) -> None:
        self.job, self.table, self.layout, self.sizes = job, table, layout, sizes
        self._held: dict[tuple[Pattern, tuple[tuple[int, int], ...]], RankPart] = {}

    def cuts(self, pattern: Pattern) -> tuple[Cut, ...]:
        """The cuts of a stored tensor: those of the logical tensors in it, which are alike."""
        return (self.layout.sharding or {}).get(pattern.tensors[0], Sharding()).cuts

    def part(self, pattern: Pattern, cut: Cut, rank: Rank) -> tuple[int, int]:
        """(into how many parts a cut cuts, which of them a rank has)."""
        of_experts = any(one.dimension == "ep" for one in self.cuts(pattern))
        return self.job.cut(cut.dimension, of_experts, rank)

    def count(self, pattern: Pattern) -> int:
        """Into how many parts the tensors of a pattern are cut."""
        cuts = [cut for cut in self.cuts(pattern) if cut.axis not in pattern.name_axes]
        return math.prod(self.part(pattern, cut, Rank())[0] for cut in cuts)

    def experts(self, pattern: Pattern, rank: Rank) -> tuple[int, int] | None:
        """The numbers of the experts that a rank has, of tensors with the expert in their name."""
        for cut in self.cuts(pattern):
            if cut.dimension == "ep" and cut.axis in pattern.name_axes:
                return self._range(pattern, cut, rank)
        return None

    def held(self, pattern: Pattern, rank: Rank) -> RankPart:
        """What a rank has of the tensors of a pattern. Raises `ConfigError` for an axis that can't
        be cut so, or whose length must be known."""
        cuts = [cut for cut in self.cuts(pattern) if cut.axis not in pattern.name_axes]
        key = tuple(self.part(pattern, cut, rank) for cut in cuts)
        found = self._held.get((pattern, key))
        if found is None:
            ranges = {cut.axis: self._range(pattern, cut, rank) for cut in cuts}
            found = self._held[pattern, key] = self._made(pattern, ranges, key)
        return found

    def _range(self, pattern: Pattern, cut: Cut, rank: Rank) -> tuple[int, int]:
        parts, index = self.part(pattern, cut, rank)
        length = self._length(pattern, cut.axis)
        if length % parts:
            raise ConfigError(
                f"{pattern.template}: its axis {cut.axis} ({self.table.axes[cut.axis].text}) is "
                f"{length}, which can't be cut into {parts} parts; a degree must divide it."
            )
        return index * length // parts, (index + 1) * length // parts

    def _length(self, pattern: Pattern, axis: str) -> int:
        length = self.sizes.get(axis)
        if length is None:
            raise ConfigError(
                f"{pattern.template}: the length of its axis {axis} must be known; it comes from "
                f"config.json ({self.table.axes[axis].text}). Give it with {option('config')}."
            )
        return length

    def _made(self, pattern: Pattern, ranges: Ranges, key: tuple[tuple[int, int], ...]) -> RankPart:
        axes = {
            tensor: [axis for axis in self.table.tensors[tensor] if axis not in pattern.name_axes]
            for tensor in pattern.tensors
        }
        whole = {axis: self._length(pattern, axis) for own in axes.values() for axis in own}
        part = {**whole, **{axis: stop - start for axis, (start, stop) in ranges.items()}}
        shape = pattern.shape(lambda _, axis: part[axis])
        if part == whole:
            return RankPart(shape=shape, transfers=None, key=key)
        transfers = []
        for tensor, own in axes.items():
            source = pattern.place(tensor, own, lambda _, axis: whole[axis])
            target = pattern.place(tensor, own, lambda _, axis: part[axis])
            start = source.at([ranges[axis][0] if axis in ranges else 0 for axis in own])
            lengths = tuple(part[axis] for axis in own)
            transfers.append(
                Transfer(lengths, start, source.strides, target.offset, target.strides).ordered()
            )
        return RankPart(shape=shape, transfers=tuple(transfers), key=key)
