"""Sizes of what is moved at a time, and where the system is slow to move it."""

from __future__ import annotations

from ckptforge.dtypes import BY_NAME
from ckptforge.storage.machine import PAGE

LINE = 64  # bytes of a cache line
PIECE_BYTES = 256 * 1024  # stays in a core's cache
MANY_CALLS = 16
SUMS = BY_NAME["float64"]  # in which terms are added up
_NEAR = 32


def slow_to_copy(source: int, target: int) -> bool:
    """Whether the system is slow to copy from one file offset to another, or between an offset and
    an address: where the target lies less than 32 bytes behind the source, modulo a page, x86's
    `rep movsb` takes several times as long (measured for each distance: 0.21 to 0.26 s for reading
    500 MB at 1 to 31 bytes, 0.05 s at all others)."""
    return 0 < (target - source) % PAGE < _NEAR


def between(source: int, target: int) -> int:
    """The bytes by which a buffer's address is to lie behind the file offset `source`, modulo a
    page, so that neither reading into it nor writing from it to the offset `target` is slow."""
    return 2 * _NEAR if slow_to_copy(source, target) else 0
