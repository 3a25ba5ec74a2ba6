"""Cutting output tensors into tiles that fit a worker's buffers. Pure arithmetic.

Reading and writing a tile costs a system call for every run of bytes, so its form is chosen to
make the runs few and long: a plain copy gets one long row, a transposition a window that is broad
on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import product

import msgspec

from ckptforge.boxes import boxes_in_range
from ckptforge.run.passing import BLOCK_BYTES
from ckptforge.transfers import Transfer
from ckptforge.values import Window

# What a system call costs, in bytes that could be read in its time. Short writes cost more than
# reads, as each meets two pages that it fills in part, and a lock. Measured: 2 µs, 7 µs with one
# worker and 21 with eight, and 8 GB/s.
_READ_CALL = 16_384
_WRITE_CALL = 131_072
# What a byte from afar costs. It comes with those around it, so that a gap costs as much as what is
# wanted.
_FAR = 64


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


class Spans(msgspec.Struct, frozen=True):
    """How the source of a transfer is read: spans of `length` elements, put one after another into
    a buffer, where the transfer's axes have `strides`. `outer` are the (size, stride) of the axes
    that start a span each."""

    outer: tuple[tuple[int, int], ...]
    length: int
    strides: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many spans there are."""
        return math.prod(n for n, _ in self.outer)

    @property
    def elements(self) -> int:
        """Numbers in all spans."""
        return self.count * self.length

    def starts(self) -> Iterator[int]:
        """First element of each span, counted from the transfer's source."""
        axes = (range(0, n * stride, stride) for n, stride in self.outer)
        return map(sum, product(*axes))


def spans_of(transfer: Transfer, itemsize: int) -> Spans:
    """The spans that are read fastest: over a gap that costs less to read than to skip."""
    axes = sorted(range(len(transfer.shape)), key=lambda axis: -transfer.source_strides[axis])
    shape, strides, length = transfer.shape, list(transfer.source_strides), 1
    while axes and (strides[axes[-1]] - length) * itemsize <= _READ_CALL:
        axis = axes.pop()
        length += (shape[axis] - 1) * strides[axis]
    outer = tuple((shape[axis], strides[axis]) for axis in axes)
    packed = length
    for axis in reversed(axes):
        strides[axis] = packed
        packed *= shape[axis]
    return Spans(outer, length, tuple(strides))


def windows(start: int, spans: Spans, columns: int) -> Iterator[Window]:
    """The windows that spans are of a tensor with so many columns, counted from element `start`,
    those of neighbouring rows joined."""
    at = 0
    held: Window | None = None
    for offset in spans.starts():
        flat, left = start + offset, spans.length
        while left:
            row, c0 = divmod(flat, columns)
            count = left // columns if c0 == 0 and left >= columns else 1
            c1 = columns if count > 1 else min(columns, c0 + left)
            if held is not None and held[3:] == (c0, c1) and held.first + held.rows == row:
                held = held._replace(rows=held.rows + count)
            else:
                if held is not None:
                    yield held
                held = Window(at, row, count, c0, c1)
            taken = count * (c1 - c0)
            at, flat, left = at + taken, flat + taken, left - taken
    if held is not None:
        yield held


def strips(transfer: Transfer, max_elements: int, itemsize: int) -> Iterator[Transfer]:
    """The parts of a transfer that are read at a time, gaps included into at most `max_elements`:
    cut along the source's slowest axes, in its order."""
    read = spans_of(transfer, itemsize).elements
    if read <= max_elements or transfer.size == 1:
        yield transfer
        return
    axis = max(
        (axis for axis, n in enumerate(transfer.shape) if n > 1),
        key=lambda axis: transfer.source_strides[axis],
    )
    n = transfer.shape[axis]
    step = max(1, min(n - 1, n * max_elements // read))
    for start in range(0, n, step):
        box = [(0, length) for length in transfer.shape]
        box[axis] = (start, min(start + step, n))
        yield from strips(transfer.sub(tuple(box)).ordered(), max_elements, itemsize)


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


@lru_cache(maxsize=4096)
def best_form(
    total: int,
    itemsize: int,
    transfers: tuple[Transfer, ...],
    max_elements: int,
    far: bool = False,
    in_order: bool = False,
) -> tuple[int, int, int]:
    """(width, rows, columns) of the tiles of at most `max_elements` that cost least, judged by one
    in the middle; with `far` of sources that aren't on this machine, with `in_order` such as
    follow each other in the output."""
    best, best_cost = (total, 1, min(total, max_elements)), math.inf
    strides = {stride for transfer in transfers for stride in transfer.target_strides}
    reaches = {one.last_target + 1 - one.target for one in transfers} if far else set()
    max_elements = min(max_elements, max(reaches, default=max_elements))  # not of what lies apart
    for width in sorted({1, total, *strides}, reverse=True):
        if total % width or not all(fits(transfer, width) for transfer in transfers):
            continue
        height = total // width
        whole = max_elements // width  # rows of whole width
        counts = {min(1 << i, height) for i in range(max_elements.bit_length())}
        counts |= {min(whole, height)} if whole else set()
        own = {-(-reach // width) for reach in reaches if reach <= max_elements * width}
        for rows in sorted(own | counts):
            columns = min(width, max_elements // rows)
            if width < total or total * itemsize <= BLOCK_BYTES:  # else they end where blocks do
                columns = _even(width, columns)
            if in_order and rows > 1 and columns < width:
                continue
            middle = Tile(width, *_middle(height, rows), *_middle(width, columns))
            cost = _cost(middle, itemsize, transfers, far)
            if cost < best_cost:
                rows = rows if rows in own else _even(height, rows)
                best, best_cost = (width, rows, columns), cost
    return best


def _even(total: int, limit: int) -> int:
    """The length of as few pieces of a total as have at most `limit`, all about alike."""
    return -(-total // -(-total // limit))


def _middle(total: int, length: int) -> tuple[int, int]:
    start = (total // length) // 2 * length
    return (start, start + length) if start + length <= total else (total - length, total)


def _cost(tile: Tile, itemsize: int, transfers: tuple[Transfer, ...], far: bool) -> float:
    """Bytes that could be read in the time that the tile takes, by element."""
    cost = tile.run_count * _WRITE_CALL
    for transfer in transfers:
        for part in inside(transfer, tile):
            spans = spans_of(part, itemsize)
            cost += spans.count * _READ_CALL + spans.elements * itemsize
            cost += far * _FAR * (part.last_source + 1 - part.source) * itemsize
    return cost / tile.elements
