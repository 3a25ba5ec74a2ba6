"""Where bytes lie, as interfaces, so that outputs can be read and written in other places than this
machine's disks.

A `Store` is enough to read from. It answers for every path below the place where it is mounted
(`storage/mounts.py`), and gets the paths as they are. Threads share its readers and writers: each
call says where it reads or writes. What a reader's `status` says is of the very file that is open,
whatever has its name now.

Addresses of a scheme are read by whichever store `storage/schemes.py` finds for it.

To add a store, write a class with the methods of `Store`, or of `publish/file_system.py:FileSystem`
for outputs, let `ckptforge.testing.store_tests` test it, and mount it: `testing/memory.py`.

All calls raise `OSError` with the path as its `filename`. Reading and writing may do less than was
asked for, as the system's own calls may; `storage/files.py` goes on, and makes errors of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec


class Kind(Enum):
    """What has a name."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    OTHER = "other"  # a pipe, a device


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What a store knows of a file or a directory. Two names with the same `number` (device, file)
    are one file. `mode` are permissions, `owner` is (user, group), `disk_bytes` what it takes up,
    `links` how many names it has. Size and `mtime_ns` tell whether a file is still what it was."""

    kind: Kind
    size: int
    mtime_ns: int
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)
    number: tuple[int, int] = (0, 0)
    disk_bytes: int = 0
    links: int = 1


class Room(msgspec.Struct, frozen=True):
    """What can be written in a directory."""

    free_bytes: int
    read_only: bool
    permitted: bool


class Reader(Protocol):
    """A file that is open for reading."""

    def status(self) -> Status:
        """What is known of the file that is open."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Reads bytes from `offset` into a buffer; returns how many, 0 at the end of the file."""

    def begin_read(self, offset: int, length: int) -> None:
        """Says that these bytes will be read soon, so that the store may bring them."""

    def drop_cached(self, offset: int, length: int) -> None:
        """Says that these bytes won't be read soon, so that the system may forget them."""

    def close(self) -> None:
        """Closes it: nothing is read after that."""


@runtime_checkable
class HashingReader(Reader, Protocol):
    """A reader that hashes what it brings, so that far bytes needn't come twice. Sources of such a
    store are hashed after they were read."""

    def digest(self, start: int, length: int) -> bytes | None:
        """XXH3 (128 bits) of bytes that it hashes; None of others, or where it isn't known yet."""

    def expect(self, ranges: Sequence[tuple[int, int]] | None) -> None:
        """Says which bytes, from the first to before the end of each range, will be read; others
        are at most hashed. None stands for all."""

    def begin_only(self, offset: int, length: int) -> None:
        """Says that these bytes will be read soon, as `begin_read` does, and what lies around them
        later: until then the store had better not hold that."""

    def holding(self, offset: int, length: int) -> AbstractContextManager[None]:
        """Within this these bytes may be read more than once, and had better stay."""


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
        """Makes the contents and the size durable: they survive a loss of power."""


@runtime_checkable
class OrderedWriter(HashingReader, Protocol):
    """A writer of a store in which files are written from front to back. It holds what comes too
    early, so that not much must. What was written can't be read; it is hashed on the way."""

    in_order: bool


class Store(Protocol):
    """A place that files can be read from."""

    def status(self, path: Path, *, follow: bool = True) -> Status:
        """Of what a path leads to, or with `follow=False` of a link itself."""

    def names(self, directory: Path) -> list[str]:
        """What lies in a directory, in any order."""

    def open(self, path: Path) -> Reader | None:
        """A regular file, opened for reading; None for anything else of that name."""

    def real_path(self, path: Path) -> Path:
        """The absolute path without links on its way."""


@runtime_checkable
class PublishingStore(Store, Protocol):
    """A store in which outputs appear in a way of its own."""

    def publisher(self) -> Any:
        """That way, a `Publisher` (`publish/publisher.py`); None where nothing can be written."""
