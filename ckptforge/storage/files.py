"""Files of whichever store: reading and writing whole, with errors that name the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ckptforge.errors import FormatError, InputNotFoundError, OutputError, ReadError
from ckptforge.storage.mounts import refuse_address, store_of
from ckptforge.storage.store import Reader, Writer
from ckptforge.values import Located


def open_file(path: Path) -> Reader:
    """A regular file, opened for reading. Raises `InputNotFoundError`, naming the path and the
    system's reason."""
    try:
        reader = store_of(path).open(path)
    except (OSError, ValueError) as error:
        refuse_address(path)
        raise InputNotFoundError(
            f"{path}: can't be opened: {getattr(error, 'strerror', None) or error}."
        ) from error
    if reader is None:
        raise InputNotFoundError(f"{path}: isn't a regular file.")
    return reader


def read_exactly(reader: Reader, offset: int, into: memoryview, path: Path) -> None:
    """Fills `into` from byte `offset`. Raises `FormatError` at the end of the file and `ReadError`
    on read errors."""
    done = 0
    while done < len(into):
        try:
            count = reader.read_into(offset + done, into[done:] if done else into)
        except OSError as error:
            raise ReadError(
                f"{path}: reading at byte {offset + done} failed: {error.strerror}."
            ) from error
        if count == 0:
            raise FormatError(
                f"{path}: ends at byte {offset + done} where its index promises {len(into) - done} "
                "bytes more; the file was cut off or changed while it was read."
            )
        done += count


def read_pieces(
    reader: Reader, offset: int, length: int, buffer: memoryview, path: Path
) -> Iterator[memoryview]:
    """`length` bytes from byte `offset`, as many at a time as `buffer` holds, in it."""
    for at in range(offset, offset + length, len(buffer)):
        piece = buffer[: min(len(buffer), offset + length - at)]
        read_exactly(reader, at, piece, path)
        yield piece


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
            done = reader.read_into(base + start, piece) if base is not None else 0
        except OSError:
            done = 0
        if done < length:
            read_range(entry, start + done, piece[done:], reader)
        at += length


def read_bytes(reader: Reader, offset: int, length: int, path: Path) -> bytearray:
    """`length` bytes from byte `offset`. Raises what `read_exactly` raises."""
    buffer = bytearray(length)
    read_exactly(reader, offset, memoryview(buffer), path)
    return buffer


def write_exactly(writer: Writer, offset: int, data: memoryview | bytes, path: Path) -> None:
    """Writes all of `data` at byte `offset`. Raises `OutputError` with the system's reason."""
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        try:
            done += writer.write(offset + done, view[done:])
        except OSError as error:
            raise OutputError(
                f"{path}: writing at byte {offset + done} failed: {error.strerror}; "
                "no output was created."
            ) from error
