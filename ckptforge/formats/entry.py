"""What every format's index is made of, and reading from it: tensors, and the extents of files
where their bytes lie."""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path

import msgspec

from ckptforge.boxes import Box, Transfer, box_shape, row_major_strides
from ckptforge.dtypes import BY_NAME, DType
from ckptforge.errors import FormatError, ReadError, shown
from ckptforge.storage.files import open_file, read_exactly
from ckptforge.storage.mounts import store_of
from ckptforge.storage.store import Reader

MAX_TENSORS = 1 << 18  # in one file; the largest models have some 100,000 in all their files
MAX_NAME = 1 << 16  # bytes
MAX_DIMS = 64
_PIECE = 1 << 20  # bytes that are compared at a time


class Extent(msgspec.Struct, frozen=True):
    """`length` bytes of a tensor, from its byte `start`, lie at byte `offset` of the file."""

    start: int
    offset: int
    length: int


class TensorEntry(msgspec.Struct, frozen=True):
    """A tensor in a file: row-major, little-endian, its bytes cut into consecutive extents. Where
    it is read, it becomes what it stands for by `scaled`, and `plus` is added to it."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    path: Path
    extents: tuple[Extent, ...]
    plus: LowRank | None = None
    scaled: Scaled | None = None
    stored: str = ""

    @property
    def label(self) -> str:
        """The name that it is stored under, for messages; `name` may be that without what a wrapper
        put before it."""
        return self.stored or self.name

    @property
    def computed(self) -> bool:
        """Whether its numbers aren't those in the file."""
        return self.plus is not None or self.scaled is not None

    @property
    def value_dtype(self) -> DType:
        """The dtype of the numbers that it stands for."""
        return self.dtype if self.scaled is None else self.scaled.dtype

    @property
    def working_dtype(self) -> DType:
        """What its numbers are computed in: float32, or float64 where the tensor or its scales are
        of that."""
        scale = self if self.scaled is None else self.scaled.scale
        return BY_NAME["float64" if "float64" in (self.dtype.name, scale.dtype.name) else "float32"]

    def __hash__(self) -> int:
        return hash((self.name, self.path))  # plans of many ranks hash millions of times

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize

    def file_offset(self, start: int) -> int:
        """Where byte `start` of the tensor lies in the file; 0 for a tensor of no file."""
        return next(self.file_ranges(start, 1))[0] if self.extents else 0

    def file_ranges(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        """(file offset, length) of the pieces that hold bytes [start, start + length) of the
        tensor, in order."""
        index = bisect_right(self.extents, start, key=lambda extent: extent.start) - 1
        while length > 0:
            extent = self.extents[index]
            skip = start - extent.start
            take = min(length, extent.length - skip)
            if take > 0:
                yield extent.offset + skip, take
                start += take
                length -= take
            index += 1


class Scaled(msgspec.Struct, frozen=True, kw_only=True):
    """What the numbers of a quantised tensor stand for: (number - offset) · scale, with one scale,
    and one offset, for each block of `block` elements by axis; blocks at the edges may be smaller.
    What comes out is taken for `dtype`. With `exponents` a scale is the byte of a power of two, 2
    ** (byte - 127)."""

    scale: TensorEntry
    block: tuple[int, ...]
    dtype: DType
    offset: TensorEntry | None = None
    exponents: bool = False


class Product(msgspec.Struct, frozen=True):
    """`scale` · B·A, with A of shape (r, columns) and B of shape (rows, r); `rows` sends rows of B
    to those of the whole matrix. `turned`: both are stored as their transposes."""

    a: TensorEntry
    b: TensorEntry
    scale: float
    rows: Transfer
    turned: bool = False

    @property
    def rank(self) -> int:
        return self.a.shape[1 if self.turned else 0]

    @property
    def columns(self) -> int:
        return self.a.shape[0 if self.turned else 1]


class LowRank(msgspec.Struct, frozen=True):
    """What is to be added to a matrix: products, each to some of its rows. The matrix, or the part
    of it that lies in one file, is `box` of the whole."""

    products: tuple[Product, ...]
    box: Box


class Checksum(msgspec.Struct, frozen=True):
    """A crc32 stored in a file: over `parts` in order, each either bytes or an (offset, length) of
    the file."""

    expected: int
    parts: tuple[bytes | tuple[int, int], ...]


class FileIndex(msgspec.Struct, frozen=True):
    """What one file holds: `tensors` in the file's order, `metadata` strings, and `notes` a user
    should hear of; `size` (bytes) and `mtime_ns` are those it had when the index was read.
    `passed_over` are tensors that it holds too, but that are read from another file."""

    path: Path
    format: str
    size: int
    mtime_ns: int
    tensors: dict[str, TensorEntry]
    metadata: Mapping[str, str] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    checksum: Checksum | None = None
    passed_over: tuple[str, ...] = ()

    def refuse_changed(self) -> None:
        """Raises `FormatError` where the file isn't what it was when its index was read,
        `ReadError` where it has vanished."""
        try:
            found = store_of(self.path).status(self.path)
        except OSError as error:
            raise ReadError(
                f"{self.path}: has vanished while it was read: {error.strerror}."
            ) from error
        if (found.size, found.mtime_ns) != (self.size, self.mtime_ns):
            raise FormatError(
                f"{self.path}: was changed while it was read, so that nothing was "
                "written; convert it again."
            )

    def verify(self, buffer: memoryview, stopped: Callable[[], bool] = lambda: False) -> None:
        """Reads the whole file through `buffer` and compares its stored checksum, if it has one;
        ends early when `stopped`.

        Raises `FormatError` when they differ.
        """
        if self.checksum is None:
            return
        crc = 0
        reader = open_file(self.path)
        try:
            for part in self.checksum.parts:
                if isinstance(part, bytes):
                    crc = zlib.crc32(part, crc)
                    continue
                offset, length = part
                for at in range(offset, offset + length, len(buffer)):
                    if stopped():
                        return
                    piece = buffer[: min(len(buffer), offset + length - at)]
                    read_exactly(reader, at, piece, self.path)
                    crc = zlib.crc32(piece, crc)
        finally:
            reader.close()
        if crc != self.checksum.expected:
            raise FormatError(
                f"{self.path}: the stored crc32 is {self.checksum.expected}, the "
                f"contents give {crc}; the file is damaged."
            )


def check_name(name: str, path: Path) -> None:
    """Raises `FormatError` for a tensor's name that is too long or isn't Unicode."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError as error:
        raise FormatError(
            f"{path}: the name {shown(name)} isn't Unicode; damaged, or another kind of file."
        ) from error
    if length > MAX_NAME:
        raise FormatError(
            f"{path}: the name {shown(name)} has {length} bytes, at most {MAX_NAME} are read."
        )


def bytes_needed(dtype: DType, shape: tuple[int, ...], path: Path, name: str) -> int:
    """Bytes of a tensor. Raises `FormatError` for more dims than programs have, and where the
    product leaves 63 bits, even if another dim is 0: nothing could compute with it."""
    if len(shape) > MAX_DIMS:
        raise FormatError(
            f"{path}: tensor {shown(name)} has {len(shape)} dims, more than "
            f"{MAX_DIMS}; damaged, or another kind of file."
        )
    if math.prod(n for n in shape if n) * dtype.itemsize >= 1 << 63:
        raise FormatError(
            f"{path}: tensor {shown(name)}: {dtype} {shown(list(shape))} needs more "
            "bytes than 63 bits can count; damaged."
        )
    return math.prod(shape) * dtype.itemsize


def read_range(
    entry: TensorEntry, start: int, into: memoryview, reader: Reader | None = None
) -> None:
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
    entry: TensorEntry, starts: Iterable[int], length: int, into: memoryview, reader: Reader
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


def read_box(entry: TensorEntry, box: Box, into: memoryview) -> None:
    """Reads a box of a tensor, row-major, into a caller's writable buffer of `volume(box) *
    itemsize` bytes.

    Raises `ValueError` for a box outside the tensor or a buffer of another size, `FormatError` if
    the file is short.
    """
    if len(box) != len(entry.shape) or any(
        not 0 <= lo <= hi <= n for (lo, hi), n in zip(box, entry.shape, strict=True)
    ):
        raise ValueError(f"box {box} isn't inside {entry.name} {list(entry.shape)}")
    shape, strides, itemsize = box_shape(box), row_major_strides(entry.shape), entry.dtype.itemsize
    target = into.cast("B")
    if len(target) != math.prod(shape) * itemsize:
        raise ValueError(
            f"the buffer has {len(target)} bytes; box {box} of {entry.name} needs "
            f"{math.prod(shape) * itemsize}"
        )
    if not len(target):
        return
    inner = len(shape)
    while inner > 0 and math.prod(shape[inner:]) == math.prod(entry.shape[inner:]):
        inner -= 1
    run = math.prod(shape[inner:]) * itemsize
    base = sum(lo * stride for (lo, _), stride in zip(box, strides, strict=True))
    reader = open_file(entry.path)
    try:
        done = 0
        for index in product(*(range(n) for n in shape[:inner])):
            start = (
                base + sum(i * stride for i, stride in zip(index, strides[:inner], strict=True))
            ) * itemsize
            read_range(entry, start, target[done : done + run], reader)
            done += run
    finally:
        reader.close()


def same_bytes(a: TensorEntry, b: TensorEntry) -> bool:
    """Whether two tensors of as many bytes hold the same, read piece by piece. Raises the errors of
    reading."""
    buffers = [memoryview(bytearray(min(_PIECE, max(a.nbytes, 1)))) for _ in range(2)]
    for start in range(0, a.nbytes, _PIECE):
        length = min(_PIECE, a.nbytes - start)
        for entry, buffer in zip((a, b), buffers, strict=True):
            read_range(entry, start, buffer[:length])
        if buffers[0][:length] != buffers[1][:length]:
            return False
    return True
