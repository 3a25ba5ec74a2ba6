"""Reading the bytes of stored tensors, wherever in their file these lie."""

from __future__ import annotations

from collections.abc import Iterable

from ckptforge.storage.files import open_file, read_exactly
from ckptforge.storage.store import Reader
from ckptforge.values import Located


def read_range(entry: Located, start: int, into: memoryview, reader: Reader | None = None) -> None:
    """Fills `into` with the bytes of a tensor from its byte `start`; `reader` is the open file, if
    it is open already."""
    opened = open_file(entry.path) if reader is None else reader
    try:
        at = 0
        for offset, length in entry.file_ranges(start, len(into)):
            read_exactly(opened, offset, into[at : at + length], entry.path)
            at += length
    finally:
        if reader is None:
            opened.close()


def read_spans(
    entry: Located, starts: Iterable[int], length: int, into: memoryview, reader: Reader
) -> None:
    """Fills `into` with spans of `length` bytes of a tensor, one after the other, from each of its
    bytes `starts`."""
    at = 0
    base = entry.extents[0].offset if len(entry.extents) == 1 else None
    for start in starts:
        piece = into[at : at + length]
        try:
            whole = base is not None and reader.read_into(base + start, piece) == length
        except OSError:
            whole = False
        if not whole:
            read_range(entry, start, piece, reader)
        at += length
