"""This machine's disks past the page cache: whole pages go between the disk and memory of this
program (open(2), O_DIRECT). What is smaller, what isn't whole pages, and files of file systems that
can't do it, go through the page cache as ever."""

from __future__ import annotations

import mmap
import os
import threading
from contextlib import suppress
from pathlib import Path

from ckptforge.storage.local import Disk, LocalReader, LocalWriter
from ckptforge.storage.machine import PAGE
from ckptforge.storage.store import Reader

LEAST_BYTES = 64 * 1024  # below it a copy to and from the page cache is cheaper
MOST_BYTES = 1024 * 1024
_local = threading.local()


def _memory() -> memoryview:
    """Page-aligned memory of this thread."""
    found: memoryview | None = getattr(_local, "memory", None)
    if found is None:
        found = _local.memory = memoryview(mmap.mmap(-1, MOST_BYTES))
    return found


def _again(fd: int, access: int) -> int | None:
    """A second descriptor of an open file, for whole pages; None where there can't be one."""
    with suppress(OSError, AttributeError):  # not every system has O_DIRECT
        return os.open(f"/proc/self/fd/{fd}", access | os.O_DIRECT | os.O_CLOEXEC)
    return None


class _Direct(LocalReader):
    """A descriptor of a file, and a second one for its whole pages, where there can be one."""

    access: int

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.direct = _again(fd, self.access)

    def close(self) -> None:
        """Closes both descriptors."""
        if self.direct is not None:
            os.close(self.direct)
        super().close()


class DirectReader(_Direct):
    """A file that is open for reading, its whole pages past the page cache."""

    access = os.O_RDONLY

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Whole pages around these bytes, at most 1 MiB at a time, into memory of this thread."""
        if self.direct is None or len(buffer) < LEAST_BYTES:
            return super().read_into(offset, buffer)
        memory, skipped = _memory(), offset % PAGE
        wanted = min(-(-(skipped + len(buffer)) // PAGE) * PAGE, MOST_BYTES)
        try:
            count = os.preadv(self.direct, (memory[:wanted],), offset - skipped) - skipped
        except OSError:
            return super().read_into(offset, buffer)
        count = min(max(count, 0), len(buffer))
        buffer[:count] = memory[skipped : skipped + count]
        return count

    def begin_read(self, offset: int, length: int) -> None:
        """Nothing is read ahead past the page cache."""
        if self.direct is None:
            super().begin_read(offset, length)


class DirectWriter(_Direct, LocalWriter):
    """A file that is being written, its whole pages past the page cache. It is read by way of the
    page cache, which gives back what is on the disk."""

    access = os.O_WRONLY

    def write(self, offset: int, data: memoryview) -> int:
        """Bytes up to the next page by way of the page cache, then whole pages past it."""
        if self.direct is None or len(data) < LEAST_BYTES:
            return super().write(offset, data)
        if first := -offset % PAGE:  # up to the next page
            return super().write(offset, data[:first])
        count = min(len(data) // PAGE * PAGE, MOST_BYTES)
        memory = _memory()[:count]
        memory[:] = data[:count]
        try:
            return os.pwrite(self.direct, memory, offset)
        except OSError:
            return super().write(offset, data)  # which says what is wrong, if something is

    def copy_from(self, reader: Reader, source: int, offset: int, length: int) -> int:
        """Copies nothing: it would go by way of the page cache."""
        return 0 if self.direct is not None else super().copy_from(reader, source, offset, length)


class DirectDisk(Disk):
    """The file system that paths name, past the page cache."""

    def open(self, path: Path) -> LocalReader | None:
        """As a `Disk` does, with a second descriptor."""
        found = super().open(path)
        return None if found is None else DirectReader(found.fd)

    def create(self, path: Path) -> LocalWriter:
        """As a `Disk` does, with a second descriptor."""
        return DirectWriter(super().create(path).fd)

    def reopen(self, path: Path) -> LocalWriter | None:
        """As a `Disk` does, with a second descriptor."""
        found = super().reopen(path)
        return None if found is None else DirectWriter(found.fd)


DIRECT_DISK = DirectDisk()
