"""Boxes of numbers and where they lie in a tensor. Pure arithmetic.

A *box* is a half-open range per axis. A *grid* places the elements of a box in the flat, row-major
element order of a tensor: element (i0, i1, …) of the box, counted from its start, is flat element
`offset + i0*strides[0] + i1*strides[1] + …`. Slices, stacks, transposes, concatenations and
factored axes are all grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul

Box = tuple[tuple[int, int], ...]


def full_box(shape: Sequence[int]) -> Box:
    """The box that is all of a tensor of this shape."""
    return tuple((0, size) for size in shape)


def box_shape(box: Box) -> tuple[int, ...]:
    """Lengths of a box's ranges."""
    return tuple(stop - start for start, stop in box)


def row_major_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a row-major tensor."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)


def dot(a: Sequence[int], b: Sequence[int]) -> int:
    """The sum of their products: with strides, the flat element of an index."""
    return sum(map(mul, a, b))


def index_in(strides: Sequence[int], flat: int) -> tuple[int, ...]:
    """The index, along axes with these strides, sorted downwards, of a flat element."""
    index = []
    for stride in strides:
        i, flat = divmod(flat, stride) if stride else (0, flat)
        index.append(i)
    return tuple(index)


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
