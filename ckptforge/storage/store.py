"""Where bytes lie, as interfaces: a file that is open for reading, and one that is being written.

All calls say where in the file they read or write, so that several threads may share one. They may
do less than they were asked for, as the system's own calls may, and raise `OSError`;
`storage/files.py` has what does everything or raises an error of ours.
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class Identity(msgspec.Struct, frozen=True):
    """What tells whether a file is still what it was: its size in bytes and when it was changed."""

    size: int
    mtime_ns: int


class Reader(Protocol):
    """A file that is open for reading."""

    def identity(self) -> Identity: ...

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Reads bytes from `offset` into a buffer; returns how many, 0 at the end of the file."""

    def close(self) -> None: ...


class Writer(Reader, Protocol):
    """A file that is being written; what has been written can be read."""

    def write(self, offset: int, data: memoryview) -> int:
        """Writes bytes at `offset`; returns how many."""

    def copy_from(self, reader: Reader, source: int, offset: int, length: int) -> int:
        """Copies bytes from byte `source` of another file without taking them through this
        process's memory; returns how many, 0 where the store can't."""

    def begin_sync(self, offset: int, length: int) -> None:
        """Asks for these bytes to be made durable soon, so that `sync` finds little left to do."""

    def sync(self) -> None:
        """Makes what has been written durable: it survives a loss of power."""
