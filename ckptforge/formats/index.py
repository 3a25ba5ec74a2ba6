"""What a file holds, as every format's reader says it: tensors, and the extents of the file where
their bytes lie."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import msgspec

from ckptforge.dtypes import DType
from ckptforge.errors import DamagedError, shown
from ckptforge.storage.files import open_file, read_pieces
from ckptforge.values import Stored, Value, kinds_of, value_of

MAX_TENSORS = 1 << 18  # in one file; the largest models have some 100,000 in all their files
MAX_NAME = 1 << 16  # bytes
MAX_DIMS = 64


class Checksum(msgspec.Struct, frozen=True):
    """A crc32 stored in a file: over `parts` in order, each either bytes or an (offset, length) of
    the file."""

    expected: int
    parts: tuple[bytes | tuple[int, int], ...]


class FileIndex(msgspec.Struct, frozen=True, kw_only=True):
    """What one file holds: `tensors` in its order, `metadata` strings, and `notes` a user should
    hear of; `size` (bytes) and `mtime_ns` are those when the index was read. `passed_over` are
    tensors that it holds too, but that are read from another file; `views` are tensors whose
    numbers lie in another order than their own, of which `tensors` has the run that they lie in."""

    path: Path
    format: str
    size: int
    mtime_ns: int
    tensors: dict[str, Stored]
    metadata: Mapping[str, str] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    checksum: Checksum | None = None
    passed_over: tuple[str, ...] = ()
    views: Mapping[str, Value] = msgspec.field(default_factory=dict)

    def values(self) -> Iterator[tuple[str, Value]]:
        """The tensors by name: those that lie there as they are, and views of what lies there."""
        kinds = kinds_of([stored.name for stored in self.tensors.values()])
        for (name, stored), kind in zip(self.tensors.items(), kinds, strict=True):
            yield name, self.views.get(name) or value_of(stored, kind)

    def verify(self, buffer: memoryview, stopped: Callable[[], bool] = lambda: False) -> None:
        """Reads the whole file through `buffer` and compares its stored checksum, if it has one;
        ends early when `stopped`. Raises `FormatError` when they differ."""
        if self.checksum is None:
            return
        crc = 0
        with closing(open_file(self.path)) as reader:
            for part in self.checksum.parts:
                if isinstance(part, bytes):
                    crc = zlib.crc32(part, crc)
                    continue
                for piece in read_pieces(reader, *part, buffer, self.path):
                    if stopped():
                        return
                    crc = zlib.crc32(piece, crc)
        if crc != self.checksum.expected:
            raise DamagedError(
                f"{self.path}: the stored crc32 is {self.checksum.expected}, the "
                f"contents give {crc}; the file is damaged."
            )


def check_name(name: str, path: Path) -> None:
    """Raises `FormatError` for a tensor's name that is too long or isn't Unicode."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError as error:
        raise DamagedError(
            f"{path}: the name {shown(name)} isn't Unicode; damaged, or another kind of file."
        ) from error
    if length > MAX_NAME:
        raise DamagedError(
            f"{path}: the name {shown(name)} has {length} bytes, at most {MAX_NAME} are read."
        )


def check_size(stored: Stored, held: int) -> None:
    """Raises `FormatError` where a tensor hasn't as many bytes as it needs, and for sizes below
    0."""
    path, name, shape = stored.path, stored.name, stored.shape
    needed = bytes_needed(stored.dtype, shape, path, name)
    if held != needed or min(shape, default=0) < 0:
        raise DamagedError(
            f"{path}: tensor {shown(name)}, {stored.dtype} {list(shape)}, should have {needed} "
            f"bytes but {held} are there; the file is damaged or incomplete."
        )


def bytes_needed(dtype: DType, shape: tuple[int, ...], path: Path, name: str) -> int:
    """Bytes of a tensor. Raises `FormatError` for more dims than programs have, and where the
    product leaves 63 bits, even if another dim is 0: nothing could compute with it."""
    if len(shape) > MAX_DIMS:
        raise DamagedError(
            f"{path}: tensor {shown(name)} has {len(shape)} dims, more than "
            f"{MAX_DIMS}; damaged, or another kind of file."
        )
    if math.prod(n for n in shape if n) * dtype.itemsize >= 1 << 63:
        raise DamagedError(
            f"{path}: tensor {shown(name)}: {dtype} {shown(list(shape))} needs more "
            "bytes than 63 bits can count; damaged."
        )
    return math.prod(shape) * dtype.itemsize
