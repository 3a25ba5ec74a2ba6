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
from ckptforge.storage.store import Reader

PAGE = 4096  # a multiple of what disks ask for, of offsets, lengths and addresses
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


class DirectReader(LocalReader):
    """Descriptors of a file: one for its whole pages, where there is one."""

    def __init__(self, fd: int, direct: int | None) -> None:
        super().__init__(fd)
        self.direct = direct

    def read_into(self, offset: int, buffer: memoryview) -> int:
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
        if self.direct is None:
            super().begin_read(offset, length)

    def close(self) -> None:
        if self.direct is not None:
            os.close(self.direct)
        super().close()


class DirectWriter(LocalWriter):
    """The same of a file that is being written, which is read by way of the page cache: that gives
    back what is on the disk."""

    def __init__(self, fd: int, direct: int | None) -> None:
        super().__init__(fd)
        self.direct = direct

    def write(self, offset: int, data: memoryview) -> int:
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
        return 0 if self.direct is not None else super().copy_from(reader, source, offset, length)

    def close(self) -> None:
        if self.direct is not None:
            os.close(self.direct)
        super().close()


class DirectDisk(Disk):
    """The file system that paths name, past the page cache."""

    def open(self, path: Path) -> LocalReader | None:
        found = super().open(path)
        return None if found is None else DirectReader(found.fd, _again(found.fd, os.O_RDONLY))

    def create(self, path: Path) -> LocalWriter:
        fd = super().create(path).fd
        return DirectWriter(fd, _again(fd, os.O_WRONLY))

    def reopen(self, path: Path) -> LocalWriter | None:
        found = super().reopen(path)
        return None if found is None else DirectWriter(found.fd, _again(found.fd, os.O_WRONLY))


DIRECT_DISK = DirectDisk()
