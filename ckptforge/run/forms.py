"""The form of tiles. Reading and writing a tile costs a system call for every run of bytes, so it
is chosen to make the runs few and long: a plain copy gets one long row, a transposition a window
that is broad on both sides. Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import msgspec
from msgspec.structs import replace

from ckptforge.run.passing import BLOCK_BYTES
from ckptforge.run.spans import READ_CALL, cost_of, spans_of
from ckptforge.run.tiles import Tile, fits, inside
from ckptforge.storage.address import address
from ckptforge.transfers import Transfer
from ckptforge.values import Fragment

# What a call that writes costs, as `READ_CALL`: short writes cost more than reads, as each meets
# two pages that it fills in part, and a lock. Measured: 7 µs with one worker and 21 with eight.
_WRITE_CALL = 131_072
# What a byte from afar costs. It comes with those around it, so that a gap costs as much as what is
# wanted.
_FAR = 64


class Sources(msgspec.Struct, frozen=True):
    """What tiles are made of: transfers, wherever in their sources they begin, what a number that
    is read of them costs (`cost_of`), and whether the sources are far: not on this machine."""

    transfers: tuple[Transfer, ...]
    each: int
    far: bool = False

    @classmethod
    def of(cls, fragments: Iterable[Fragment]) -> Sources:
        """Those of fragments."""
        found = list(fragments)
        transfers = tuple([replace(fragment.transfer, source=0) for fragment in found])
        far = any(map(address, {fragment.stored.path for fragment in found}))
        return cls(transfers, max(map(cost_of, found), default=1), far)

    def fit(self, width: int) -> bool:
        """Whether all run along rows of `width` elements, or across them."""
        return all(fits(transfer, width) for transfer in self.transfers)

    def cost(self, tile: Tile) -> float:
        """Bytes that could be read in the time that a tile takes, by element."""
        cost = tile.run_count * _WRITE_CALL
        for transfer in self.transfers:
            for part in inside(transfer, tile):
                spans = spans_of(part, self.each)
                cost += spans.count * READ_CALL + spans.elements * self.each
                cost += self.far * _FAR * (part.last_source + 1 - part.source) * self.each
        return cost / tile.elements


@lru_cache(maxsize=4096)
def best_form(
    total: int, itemsize: int, sources: Sources, max_elements: int, in_order: bool = False
) -> tuple[int, int, int]:
    """(width, rows, columns) of the tiles of at most `max_elements` that cost least, judged by one
    in the middle; with `in_order` such as follow each other in the output."""
    best, best_cost = (total, 1, min(total, max_elements)), math.inf
    strides = {stride for transfer in sources.transfers for stride in transfer.target_strides}
    reaches: set[int] = set()
    if sources.far:
        reaches = {one.last_target + 1 - one.target for one in sources.transfers}
    max_elements = min(max_elements, max(reaches, default=max_elements))  # not of what lies apart
    for width in sorted({1, total, *strides}, reverse=True):
        if total % width or not sources.fit(width):
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
            cost = sources.cost(middle)
            if cost < best_cost:
                rows = rows if rows in own else _even(height, rows)
                best, best_cost = (width, rows, columns), cost
    return best


@lru_cache(maxsize=4096)
def block_form(
    shape: tuple[int, int],
    block: tuple[int, int],
    sources: Sources,
    max_elements: int,
    in_order: bool = False,
) -> tuple[int, int] | None:
    """(rows, columns) of the tiles of whole blocks of a matrix that cost least, as `best_form`;
    None where a block has more than `max_elements`."""
    (height, width), (rows, columns) = shape, block
    most = max_elements // (rows * columns)  # blocks
    down, across = -(-height // rows), -(-width // columns)
    whole = most // across  # rows of blocks of whole width
    if not sources.fit(width) or (in_order and whole):
        return (_even(down, whole) * rows, width) if whole else None
    counts = {min(1 << i, down) for i in range(most.bit_length())}
    counts |= {min(whole, down)} if whole else set()
    best, best_cost = None, math.inf
    for count in sorted(counts):
        high, broad = count * rows, min(_even(across, most // count) * columns, width)
        middle = Tile(width, *_middle(height, min(high, height)), *_middle(width, broad))
        cost = sources.cost(middle)
        if cost < best_cost:
            best, best_cost = (_even(down, count) * rows, broad), cost
    return best


def _even(total: int, limit: int) -> int:
    """The length of as few pieces of a total as have at most `limit`, all about alike."""
    return -(-total // -(-total // limit))


def _middle(total: int, length: int) -> tuple[int, int]:
    start = (total // length) // 2 * length
    return (start, start + length) if start + length <= total else (total - length, total)
