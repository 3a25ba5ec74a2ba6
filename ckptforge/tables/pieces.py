"""The stored tensors of a layout as boxes of logical tensors, and which of those fill which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

import msgspec

from ckptforge.boxes import Box, box_shape, full_box, row_major_strides
from ckptforge.covering import box_text, intersect, uncovered
from ckptforge.errors import PlanError
from ckptforge.tables.axes import Pattern
from ckptforge.tables.grid import Grid
from ckptforge.tables.lengths import Lengths
from ckptforge.transfers import Transfer


class Piece(msgspec.Struct, frozen=True):
    """A box of a logical tensor, and where it lies in the stored tensor `name`."""

    name: str
    box: Box
    grid: Grid


def name_pieces(pattern: Pattern, counts: Lengths) -> Iterator[tuple[dict[str, int], str]]:
    """Every index of the axes in a pattern's name, and the name it gives."""
    axes, name = pattern.name_axes, pattern.namer(counts)
    for index in product(*(range(counts[axis]) for axis in axes)):
        yield dict(zip(axes, index, strict=True)), name(index)


def pieces(
    pattern: Pattern,
    tensor: str,
    axes: Sequence[str],
    lengths: Mapping[str, Mapping[str, int]],
    counts: Lengths,
) -> list[Piece]:
    """The pieces that a pattern cuts a logical tensor with these axes into, one for every name.

    `lengths[tensor]` gives the size of its axes, and those of the tensors that it is concatenated
    with; `counts` those of the axes that stand in names.
    """
    own = lengths[tensor]
    grid = pattern.place(tensor, axes, lambda part, axis: lengths[part][axis])
    found = []
    for pinned, name in name_pieces(pattern, counts):
        ends = {axis: (i, i + 1) for axis, i in pinned.items()}
        found.append(Piece(name, tuple(ends.get(axis, (0, own[axis])) for axis in axes), grid))
    return found


def whole_pieces(pattern: Pattern, shape: tuple[int, ...], counts: Lengths) -> list[Piece]:
    """Stored tensors as they are: boxes over the axes in the name and those of the shape."""
    grid = Grid(0, (0,) * len(pattern.name_axes) + row_major_strides(shape))
    return [
        Piece(name, (*((i, i + 1) for i in pinned.values()), *full_box(shape)), grid)
        for pinned, name in name_pieces(pattern, counts)
    ]


def fill(
    targets: Iterable[Piece], sources: Sequence[Piece], pinned: Sequence[int]
) -> dict[str, list[tuple[str, Box, Transfer]]]:
    """Target name → (source name, box, transfer): the source boxes that fill each target piece.

    `pinned` are the axes of the boxes on which every piece, on both sides, has length one; they
    pair the pieces off fast. Raises `PlanError` unless each element of each target piece is filled
    exactly once.
    """
    by_key: dict[tuple[int, ...], list[Piece]] = {}
    for piece in sources:
        by_key.setdefault(tuple(piece.box[axis][0] for axis in pinned), []).append(piece)
    found: dict[str, list[tuple[str, Box, Transfer]]] = {}
    for target in targets:
        parts: list[Box] = []
        for source in by_key.get(tuple(target.box[axis][0] for axis in pinned), ()):
            common = intersect(source.box, target.box)
            if common is None:
                continue
            parts.append(common)
            source_at, target_at = _start(source, common), _start(target, common)
            strides = source.grid.strides, target.grid.strides
            transfer = Transfer(box_shape(common), source_at, strides[0], target_at, strides[1])
            found.setdefault(target.name, []).append((source.name, common, transfer.ordered()))
        if wrong := uncovered(target.box, parts):
            where = f"{box_text(wrong[1])} of {box_text(target.box)}"
            raise PlanError(
                f"{target.name}: the sources {wrong[0]} at box {where}: a defect of the mapping."
            )
    return found


def _start(piece: Piece, box: Box) -> int:
    """Where a box begins in the stored tensor of a piece that holds it."""
    return piece.grid.at([lo - start for (lo, _), (start, _) in zip(box, piece.box, strict=True)])
