"""The proof that boxes cover another. Pure arithmetic."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import product

from ckptforge.boxes import Box


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
