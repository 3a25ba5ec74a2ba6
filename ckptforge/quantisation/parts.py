"""Quantised tensors in parts, so that the scales of one are held at a time."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from ckptforge.steps.grid import Grid
from ckptforge.steps.scaled import Scaled
from ckptforge.values import Extent, Stored

_MOST = 1 << 19  # scales of a part: some MB, as they are read and as numbers


def rows_of(stored: Stored, first: int, last: int) -> Stored:
    """The part of a tensor from index `first` to before `last` along its first axis, of which each
    begins with a byte."""
    row = stored.elements // max(stored.shape[0], 1)
    start, length = stored.bytes_of(first * row, (last - first) * row)
    extents, at = [], 0
    for offset, count in stored.file_ranges(start, length):
        extents.append(Extent(at, offset, count))
        at += count
    return replace(stored, shape=(last - first, *stored.shape[1:]), extents=tuple(extents))


def in_parts(stored: Stored, scaled: Scaled) -> Iterator[tuple[int, Stored, Scaled]]:
    """(first index along the first axis, the part from there, its scales) of a tensor that has more
    scales than are held at a time, in whole blocks; else all of it."""
    most = scaled.scale.stored.elements
    if most <= _MOST:
        yield 0, stored, scaled
        return
    grids = [grid.stored for grid in scaled.grids]
    step = scaled.block[0] if scaled.block else 1
    alike = all(
        grid.shape and grid.shape[0] == -(-stored.shape[0] // step) and grid.dtype.per_byte == 1
        for grid in grids
        if stored.shape
    )
    plain = alike and not any(grid.axes for grid in scaled.grids) and len(stored.shape) > 1
    if not plain:
        yield 0, stored, scaled
        return
    each = max(1, _MOST * grids[0].shape[0] // most)  # blocks along the first axis
    for at in range(0, grids[0].shape[0], each):
        first, last = at * step, min((at + each) * step, stored.shape[0])
        offset = scaled.offset
        part = replace(
            scaled,
            scale=_rows(scaled.scale, at, at + each),
            offset=None if offset is None else _rows(offset, at, at + each),
        )
        yield first, rows_of(stored, first, last), part


def _rows(grid: Grid, first: int, last: int) -> Grid:
    return replace(grid, stored=rows_of(grid.stored, first, min(last, grid.stored.shape[0])))
