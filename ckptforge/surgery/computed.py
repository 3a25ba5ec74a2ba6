"""Files whose bytes are computed where they are read: they lie nowhere, and take no memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from ckptforge.storage.mounts import mount
from ckptforge.storage.store import Kind, Status

ROOT = Path("computed:")
Make = Callable[[int, int], bytes]  # (offset, length) → the bytes of a file there


class ComputedFiles:
    """A store of such files. A file's name says what it holds, so that two of one name are one."""

    def __init__(self) -> None:
        self._files: dict[Path, tuple[int, Make]] = {}

    def add(self, name: str, size: int, make: Make) -> Path:
        """The path of a file of `size` bytes that `make` gives."""
        if not self._files:
            mount(ROOT, self)
        path = ROOT / name
        self._files[path] = size, make
        return path

    def status(self, path: Path, *, follow: bool = True) -> Status:
        """The size that a file was added with."""
        return Status(kind=Kind.FILE, size=self._of(path)[0], mtime_ns=0)

    def names(self, directory: Path) -> list[str]:
        """Raises `NotADirectoryError`: nothing lists them."""
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))

    def open(self, path: Path) -> ComputedReader:
        """A file that was added."""
        return ComputedReader(*self._of(path))

    def real_path(self, path: Path) -> Path:
        """The path itself: there are no links."""
        return path

    def _of(self, path: Path) -> tuple[int, Make]:
        if path not in self._files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return self._files[path]


class ComputedReader:
    """Such a file, open."""

    def __init__(self, size: int, make: Make) -> None:
        self._size, self._make = size, make

    def status(self) -> Status:
        """The size that the file was added with."""
        return Status(kind=Kind.FILE, size=self._size, mtime_ns=0)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Computes the bytes."""
        length = min(len(buffer), self._size - offset)
        if length > 0:
            buffer[:length] = self._make(offset, length)
        return max(length, 0)

    def begin_read(self, offset: int, length: int) -> None:
        """Nothing is to be brought."""

    def drop_cached(self, offset: int, length: int) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is open."""


COMPUTED = ComputedFiles()
