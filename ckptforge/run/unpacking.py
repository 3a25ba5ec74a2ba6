"""Numbers of which two lie in a byte, the first in its low bits, each in a byte of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.storage.files import read_spans
from ckptforge.storage.store import Reader
from ckptforge.values import Stored

Array = NDArray[Any]
_LOW = np.uint8(15)
_HALF = np.uint8(4)


def packed_bytes(stored: Stored, length: int) -> int:
    """Bytes that hold any span of so many numbers of a tensor; 0 where none share one."""
    if stored.dtype.per_byte == 1:
        return 0
    return min(length // 2 + 1, stored.nbytes)


def read_unpacked(
    stored: Stored,
    firsts: Sequence[int],
    length: int,
    into: Array,
    packed: Array,
    reader: Reader,
) -> None:
    """Fills `into` with spans of `length` numbers, one after the other, from each of the elements
    `firsts`; `packed` holds `packed_bytes` for each. Raises the errors of reading."""
    size = packed_bytes(stored, length)
    starts = [min(first // 2, stored.nbytes - size) for first in firsts]
    read_spans(stored, starts, size, packed.data, reader)
    lines, places = packed.reshape(-1, size), into.reshape(-1, length)
    skips = np.array(firsts) - 2 * np.array(starts)
    for skip in np.unique(skips):
        if (skips == skip).all():
            _unpack(lines, int(skip), places)
            continue
        found = np.empty((int(np.count_nonzero(skips == skip)), length), np.uint8)
        _unpack(lines[skips == skip], int(skip), found)
        places[skips == skip] = found


def unpacked(raw: Array) -> Array:
    """All numbers of some bytes."""
    found = np.empty(2 * raw.size, np.uint8)
    _unpack(raw.reshape(1, -1), 0, found.reshape(1, -1))
    return found


def _unpack(lines: Array, skip: int, places: Array) -> None:
    """The numbers of each line without the first `skip`."""
    lows, highs = places[:, skip % 2 :: 2], places[:, 1 - skip % 2 :: 2]
    first = (skip + 1) // 2
    np.bitwise_and(lines[:, first : first + lows.shape[1]], _LOW, out=lows)
    first = skip // 2
    np.right_shift(lines[:, first : first + highs.shape[1]], _HALF, out=highs)
