"""Tiles of whole blocks of a tensor's numbers, and what these make of one that is stored as
codes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ckptforge.dtypes import BY_NAME, DType
from ckptforge.errors import UsageError
from ckptforge.planning.assembly import Assembly
from ckptforge.run.budget import Budget
from ckptforge.run.forms import Sources, block_form
from ckptforge.run.pieces import SUMS
from ckptforge.run.tiles import Tile, fits
from ckptforge.spelling import option
from ckptforge.values import Encoding, Fragment

_FLOAT32 = BY_NAME["float32"]
_MADE = 6  # bytes of what a number becomes, at most: its code, and a scale of its own
_MOST = 1 << 23


def encoded_tiles(budget: Budget, assembly: Assembly) -> Iterator[Tile]:
    """Windows of the numbers of a tensor that is stored as codes. Raises `UsageError` where the
    memory is too little for a block."""
    encoding, fragments = assembly.encoding, list(assembly.fragments)
    assert encoding is not None
    each = numbers_dtype(assembly).itemsize + _MADE + 2 * SUMS.itemsize * assembly.summed
    most = min(budget.bytes_each * 3 // 4 // each, _MOST)
    tiles = block_tiles(encoding.shape, encoding.block, fragments, most, budget.in_order)
    if tiles is None:
        rows, columns = encoding.block
        raise UsageError(
            f"{option('memory')} of {budget.total} bytes is too little: {assembly.place.name} is "
            f"written in blocks of {rows} × {columns}, with {budget.workers} workers."
        )
    yield from tiles


def numbers_dtype(assembly: Assembly) -> DType:
    """The dtype in which an encoding is given numbers: theirs where they are just read and it takes
    them so, else float32."""
    encoding, dtypes = assembly.encoding, {one.dtype for one in assembly.fragments}
    filled = any(term.fill for term in assembly.terms)
    if encoding is None or assembly.summed or filled or len(dtypes) != 1:
        return _FLOAT32
    (dtype,) = dtypes
    return dtype if encoding.takes(dtype) else _FLOAT32


def block_tiles(
    shape: tuple[int, ...],
    block: tuple[int, int],
    fragments: Sequence[Fragment],
    most: int,
    in_order: bool = False,
) -> list[Tile] | None:
    """Windows of at most `most` numbers, each of whole blocks of the last two axes; None where a
    block is more than that."""
    *leading, height, width = shape
    if not math.prod(shape):
        return []
    if height % block[0] == 0:  # so that leading axes are rows, too
        leading, height = [], height * math.prod(leading)
    form = block_form((height, width), block, Sources.of(fragments), most, in_order)
    if form is None:
        return None
    high, broad = form
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
