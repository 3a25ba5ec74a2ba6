"""Boxes of numbers and where they lie in a tensor. Pure arithmetic.

A *box* is a half-open range per axis. A *grid* places the elements of a box in the flat, row-major
element order of a tensor: element (i0, i1, …) of the box, counted from its start, is flat element
`offset + i0*strides[0] + i1*strides[1] + …`. Slices, stacks, transposes, concatenations and
factored axes are all grids.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import product

import msgspec

Box = tuple[tuple[int, int], ...]


def full_box(shape: Sequence[int]) -> Box:
    """The box that is all of a tensor of this shape."""
    return tuple((0, size) for size in shape)


def box_shape(box: Box) -> tuple[int, ...]:
    """Lengths of a box's ranges."""
    return tuple(stop - start for start, stop in box)


def box_text(box: Box) -> str:
    """A box as an index is written: `[0:512, 0:128]`."""
    return f"[{', '.join(f'{lo}:{hi}' for lo, hi in box)}]"


def volume(box: Box) -> int:
    """Number of elements; 0 if any range is empty."""
    return math.prod(max(0, stop - start) for start, stop in box)


def intersect(a: Box, b: Box) -> Box | None:
    """The common box of two boxes over the same axes, or None when they share no element."""
    common = tuple((max(a0, b0), min(a1, b1)) for (a0, a1), (b0, b1) in zip(a, b, strict=True))
    return common if all(start < stop for start, stop in common) else None


def uncovered(box: Box, parts: Sequence[Box]) -> tuple[str, Box] | None:
    """None if the parts, each inside `box`, cover every element of it exactly once; else what is
    wrong and a box where.

    The kinds are "outside", "overlap" and "gap". The cost is that of the grid of cells between all
    edges of the parts.
    """
    for part in parts:
        if any(p0 < b0 or p1 > b1 for (p0, p1), (b0, b1) in zip(part, box, strict=True)):
            return "outside", part
    if volume(box) == 0:
        return None
    edges = [
        sorted({*side, *(edge for part in parts for edge in part[axis])})
        for axis, side in enumerate(box)
    ]

    def box_at(cell: tuple[int, ...]) -> Box:
        return tuple((along[i], along[i + 1]) for along, i in zip(edges, cell, strict=True))

    seen: set[tuple[int, ...]] = set()
    for part in parts:
        sides = zip(edges, part, strict=True)
        ranges = [range(bisect_left(of, lo), bisect_left(of, hi)) for of, (lo, hi) in sides]
        for cell in product(*ranges):
            if cell in seen:
                return "overlap", box_at(cell)
            seen.add(cell)
    if len(seen) == math.prod(len(along) - 1 for along in edges):
        return None
    cells = product(*(range(len(along) - 1) for along in edges))
    return "gap", box_at(next(cell for cell in cells if cell not in seen))


def row_major_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a row-major tensor."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)


def dot(a: Sequence[int], b: Sequence[int]) -> int:
    """The sum of their products: with strides, the flat element of an index."""
    return sum(x * y for x, y in zip(a, b, strict=True))


def index_in(strides: Sequence[int], flat: int) -> tuple[int, ...]:
    """The index, along axes with these strides, sorted downwards, of a flat element."""
    index = []
    for stride in strides:
        i, flat = divmod(flat, stride) if stride else (0, flat)
        index.append(i)
    return tuple(index)


class Grid(msgspec.Struct, frozen=True):
    """Where a box lies in a tensor; offset and strides in elements."""

    offset: int
    strides: tuple[int, ...]

    def at(self, start: Sequence[int]) -> int:
        """The flat element of the box's element `start`."""
        return self.offset + dot(start, self.strides)


def boxes_in_range(shape: Sequence[int], strides: Sequence[int], lo: int, hi: int) -> list[Box]:
    """Boxes of a grid whose flat elements (from offset 0) lie in [lo, hi): at most 2·rank - 1 of
    them, disjoint.

    Strides must be sorted downwards and nested: each at least the span of the axes after it, as in
    any row-major tensor and in its slices. A range of a factored axis, such as a shard of `(g r
    d)`, becomes boxes on its factors.
    """
    if any(n == 0 for n in shape):
        return []
    if not shape:
        return [()] if lo <= 0 < hi else []
    inner_span = dot([n - 1 for n in shape[1:]], strides[1:])
    n, stride = shape[0], strides[0]
    first_whole = max(0, -(-lo // stride))
    last_whole = min(n, (hi - 1 - inner_span) // stride + 1)
    rest = full_box(shape[1:])
    if first_whole >= last_whole:
        touched_first = max(0, (lo - inner_span + stride - 1) // stride)
        touched = range(touched_first, min(n, (hi - 1) // stride + 1))
        return [box for i in touched for box in _at(i, shape, strides, lo, hi)]
    found: list[Box] = []
    if first_whole > 0:
        found += _at(first_whole - 1, shape, strides, lo, hi)
    found.append(((first_whole, last_whole), *rest))
    if last_whole < n:
        found += _at(last_whole, shape, strides, lo, hi)
    return found


def _at(i: int, shape: Sequence[int], strides: Sequence[int], lo: int, hi: int) -> list[Box]:
    base = i * strides[0]
    return [
        ((i, i + 1), *box) for box in boxes_in_range(shape[1:], strides[1:], lo - base, hi - base)
    ]
