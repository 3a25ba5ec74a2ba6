"""Windows of output tensors that fit a worker's buffers. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import msgspec

from ckptforge.boxes import boxes_in_range
from ckptforge.transfers import Transfer


class Tile(msgspec.Struct, frozen=True):
    """A window of an output tensor of `width` columns: rows [r0, r1), columns [c0, c1)."""

    width: int
    r0: int
    r1: int
    c0: int
    c1: int

    @property
    def columns(self) -> int:
        """Numbers in a row of the window."""
        return self.c1 - self.c0

    @property
    def elements(self) -> int:
        """Numbers in the window."""
        return (self.r1 - self.r0) * self.columns

    def runs(self) -> Iterator[tuple[int, int]]:
        """(first element, number of elements) of each run of the output tensor that the window
        covers, in its order."""
        if self.columns == self.width:
            yield self.r0 * self.width, self.elements
            return
        for row in range(self.r0, self.r1):
            yield row * self.width + self.c0, self.columns

    @property
    def run_count(self) -> int:
        """How many runs there are."""
        return 1 if self.columns == self.width else self.r1 - self.r0


def inside(transfer: Transfer, tile: Tile) -> Iterator[Transfer]:
    """The parts of an ordered transfer that land in a tile, whose width `fits` it; their targets
    are counted in the tile's own row-major elements."""
    # most of many transfers, as of scattered rows, lie elsewhere
    if transfer.target >= (tile.r1 - 1) * tile.width + tile.c1:
        return
    if transfer.last_target < tile.r0 * tile.width + tile.c0:
        return
    split = sum(stride >= tile.width for stride in transfer.target_strides)
    row, column = divmod(transfer.target, tile.width)
    row_strides = [stride // tile.width for stride in transfer.target_strides[:split]]
    rows = boxes_in_range(transfer.shape[:split], row_strides, tile.r0 - row, tile.r1 - row)
    if not rows:
        return
    columns = boxes_in_range(
        transfer.shape[split:], transfer.target_strides[split:], tile.c0 - column, tile.c1 - column
    )
    to = (*(stride * tile.columns for stride in row_strides), *transfer.target_strides[split:])
    for row_box, column_box in product(rows, columns):
        part = transfer.sub((*row_box, *column_box))
        part_row, part_column = divmod(part.target, tile.width)
        target = (part_row - tile.r0) * tile.columns + part_column - tile.c0
        yield Transfer(part.shape, part.source, part.source_strides, target, to).coalesced()


def fits(transfer: Transfer, width: int) -> bool:
    """Whether each of an ordered transfer's axes runs either along rows of `width` elements, or
    along columns."""
    axes = list(zip(transfer.shape, transfer.target_strides, strict=True))
    column = transfer.target % width + sum((n - 1) * s for n, s in axes if s < width)
    return column < width and all(s % width == 0 for _, s in axes if s >= width)


def tiles(elements: int, width: int, rows: int, columns: int) -> Iterator[Tile]:
    """All tiles of `rows × columns` of an output tensor, those at its edges smaller."""
    height = elements // width if width else 0
    for r0 in range(0, height, rows):
        for c0 in range(0, width, columns):
            yield Tile(width, r0, min(r0 + rows, height), c0, min(c0 + columns, width))
