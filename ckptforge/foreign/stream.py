"""A file of whichever store as one of Python's own, for parsers that want such."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptforge.errors import CkptforgeError, FormatError, ReadError, shown
from ckptforge.formats.index import FileIndex, check_name, check_size
from ckptforge.storage.files import open_file
from ckptforge.storage.store import Reader, Status
from ckptforge.values import Stored


class Stream(io.BufferedReader):
    """A regular file that is open for reading. Reading raises `ReadError`."""

    def __init__(self, path: Path) -> None:
        """Opens it. Raises `InputNotFoundError`."""
        self._reader = open_file(path)
        super().__init__(_Raw(self._reader, path))

    def status(self) -> Status:
        """What the store knows of the file."""
        return self._reader.status()


class _Raw(io.RawIOBase):
    def __init__(self, reader: Reader, path: Path) -> None:
        self._reader, self._path, self._at = reader, path, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._reader.status().size}
        if starts[whence] + offset < 0:
            raise ValueError(f"{self._path}: byte {starts[whence] + offset} isn't in any file.")
        self._at = starts[whence] + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            count = self._reader.read_into(self._at, memoryview(buffer).cast("B"))
        except OSError as error:
            raise ReadError(
                f"{self._path}: reading at byte {self._at} failed: {error.strerror}."
            ) from error
        self._at += count
        return count

    def close(self) -> None:
        if not self.closed:
            self._reader.close()
        super().close()


@contextmanager
def parsing(path: Path, what: str) -> Iterator[None]:
    """Raises `FormatError` for whatever another library's parser raises of a file that isn't
    `what`."""
    try:
        yield
    except CkptforgeError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise FormatError(f"{path}: isn't {what} ({reason}); damaged.") from error


def index_of(path: Path, format: str, status: Status, tensors: Iterable[Stored]) -> FileIndex:
    """The index of a file that holds these tensors. Raises `FormatError` for a name that stands
    twice or can't be, and where a tensor's bytes aren't all in the file."""
    found: dict[str, Stored] = {}
    for one in tensors:
        check_name(one.name, path)
        if one.name in found:
            raise FormatError(f"{path}: tensor {shown(one.name)} is there twice.")
        inside = (one for one in one.extents if one.offset + one.length <= status.size)
        check_size(one, sum(extent.length for extent in inside))
        found[one.name] = one
    return FileIndex(
        path=path, format=format, size=status.size, mtime_ns=status.mtime_ns, tensors=found
    )
