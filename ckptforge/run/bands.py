"""Tiles of whole blocks of a tensor's numbers, and what these make of one that is stored as
codes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ckptforge.errors import UsageError
from ckptforge.planning.assembly import Assembly
from ckptforge.run.budget import Budget
from ckptforge.run.tiles import Tile, fits
from ckptforge.spelling import option
from ckptforge.values import Encoding, Fragment

_EACH = 12  # bytes of a number: itself, and what it becomes
_SUM = 16
_MOST = 1 << 20


def encoded_tiles(budget: Budget, assembly: Assembly) -> Iterator[Tile]:
    """Windows of the numbers of a tensor that is stored as codes. Raises `UsageError` where the
    memory is too little for a block."""
    encoding, fragments = assembly.encoding, list(assembly.fragments)
    assert encoding is not None
    most = budget.bytes_each * 3 // 4 // (_EACH + _SUM * assembly.summed)
    tiles = block_tiles(encoding.shape, encoding.block, fragments, most)
    if tiles is None:
        rows, columns = encoding.block
        raise UsageError(
            f"{option('memory')} of {budget.total} bytes is too little: {assembly.place.name} is "
            f"written in blocks of {rows} × {columns}, with {budget.workers} workers."
        )
    yield from tiles


def block_tiles(
    shape: tuple[int, ...], block: tuple[int, int], fragments: Sequence[Fragment], most: int
) -> list[Tile] | None:
    """Windows of at most `most` numbers, each of whole blocks of the last two axes, and as broad as
    it may be; None where a block is more than that."""
    *leading, height, width = shape
    if not math.prod(shape):
        return []
    rows, columns = block
    if height % rows == 0:  # so that leading axes are rows, too
        leading, height = [], height * math.prod(leading)
    most = min(most, _MOST)
    apart = along_rows(width, fragments)
    broad = width if rows * width <= most or not apart else most // rows // columns * columns
    if not broad or rows * broad > most:
        return None
    high = max(most // broad // rows, 1) * rows
    return [
        Tile(width, r0, min(r0 + high, first + height), c0, min(c0 + broad, width))
        for first in range(0, height * math.prod(leading), height)
        for r0 in range(first, first + height, high)
        for c0 in range(0, width, broad)
    ]


def along_rows(width: int, fragments: Sequence[Fragment]) -> bool:
    """Whether all fragments run along rows of so many elements, or across them."""
    return all(fits(one.transfer, width) for one in fragments)


def flat(tile: Tile, shape: tuple[int, ...], fragments: Sequence[Fragment]) -> Tile:
    """The same window, of whole rows, as a run of the tensor's elements, where not all fragments
    run along its rows."""
    if along_rows(tile.width, fragments):
        return tile
    return Tile(math.prod(shape), 0, 1, tile.r0 * tile.width, tile.r1 * tile.width)


def stored_tile(encoding: Encoding, tile: Tile) -> Tile:
    """The window of the stored tensor that a window of numbers makes."""
    rows, columns = encoding.unit
    height = max(encoding.shape[-2], 1)
    above = -(-height // rows)  # stored rows of one matrix
    first, skipped = divmod(tile.r0, height)
    r0 = first * above + skipped // rows
    whole, left = divmod(tile.r1 - tile.r0, rows)
    width = -(-tile.width // columns)
    c0, c1 = tile.c0 // columns, -(-tile.c1 // columns)
    return Tile(width, r0, r0 + whole + bool(left), c0, c1)
