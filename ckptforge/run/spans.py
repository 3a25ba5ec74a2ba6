"""How sources are read: in spans that a system call takes, and in strips that fit a worker's
buffers. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import msgspec

from ckptforge.transfers import Transfer
from ckptforge.values import Fragment, Window

# What a system call costs, in bytes that could be read in its time: 2 µs, and 8 GB/s.
READ_CALL = 16_384
# What it costs to take a number through steps, likewise: 5 ns.
_COMPUTED = 40


def cost_of(fragment: Fragment) -> int:
    """What a number that is read of a fragment costs, in bytes that could be read in its time."""
    return fragment.stored.dtype.itemsize + _COMPUTED * bool(fragment.steps)


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


def spans_of(transfer: Transfer, each: int) -> Spans:
    """The spans that are read fastest: over a gap that costs less to read than to skip, where a
    number that is read costs `each`."""
    axes = sorted(range(len(transfer.shape)), key=lambda axis: -transfer.source_strides[axis])
    shape, strides, length = transfer.shape, list(transfer.source_strides), 1
    while axes and (strides[axes[-1]] - length) * each <= READ_CALL:
        axis = axes.pop()
        length += (shape[axis] - 1) * strides[axis]
    outer = tuple((shape[axis], strides[axis]) for axis in axes)
    packed = length
    for axis in reversed(axes):
        strides[axis] = packed
        packed *= shape[axis]
    return Spans(outer, length, tuple(strides))


def windows(begin: int, spans: Spans, columns: int) -> Iterator[Window]:
    """The windows that spans are of a tensor with so many columns, counted from element `begin`,
    those of neighbouring rows joined."""
    at = first = rows = start = stop = 0  # of the window that is held, with no rows at first
    for offset in spans.starts():
        flat, left = begin + offset, spans.length
        while left:
            row, c0 = divmod(flat, columns)
            count = left // columns if c0 == 0 and left >= columns else 1
            c1 = columns if count > 1 else min(columns, c0 + left)
            if row == first + rows and c0 == start and c1 == stop and rows:
                rows += count
            else:
                if rows:
                    yield Window(at, first, rows, start, stop)
                    at += rows * (stop - start)
                first, rows, start, stop = row, count, c0, c1
            taken = count * (c1 - c0)
            flat, left = flat + taken, left - taken
    if rows:
        yield Window(at, first, rows, start, stop)


def strips(transfer: Transfer, max_elements: int, each: int) -> Iterator[Transfer]:
    """The parts of a transfer that are read at a time, gaps included into at most `max_elements`:
    cut along the source's slowest axes, in its order. `each` is that of `spans_of`."""
    read = spans_of(transfer, each).elements
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
        yield from strips(transfer.sub(tuple(box)).ordered(), max_elements, each)
