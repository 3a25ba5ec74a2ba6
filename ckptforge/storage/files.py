"""Files of whichever store: what is there, and reading and writing whole, with errors that name the
file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ckptforge.errors import FormatError, InputNotFoundError, OutputError, ReadError
from ckptforge.storage.mounts import refuse_address, store_of
from ckptforge.storage.store import Kind, Reader, Status, Writer


def status_of(path: Path, *, follow: bool = True) -> Status | None:
    """What a path leads to, or with `follow=False` a link itself; None for nothing, and for what
    the system won't say."""
    try:
        return store_of(path).status(path, follow=follow)
    except (OSError, ValueError):  # ValueError: a NUL, or what the system's encoding lacks
        return None


def is_file(path: Path) -> bool:
    """Whether a path leads to a regular file."""
    return (found := status_of(path)) is not None and found.kind is Kind.FILE


def is_directory(path: Path) -> bool:
    """Whether a path leads to a directory."""
    return (found := status_of(path)) is not None and found.kind is Kind.DIRECTORY


def is_link(path: Path) -> bool:
    """Whether a path is a symbolic link, wherever that leads."""
    return (found := status_of(path, follow=False)) is not None and found.kind is Kind.LINK


def exists(path: Path) -> bool:
    """Whether a path leads to anything."""
    return status_of(path) is not None


def has_name(path: Path) -> bool:
    """Whether anything has this name, be it a link to nowhere."""
    return status_of(path, follow=False) is not None


def real_path(path: Path) -> Path:
    """The absolute path without links on its way."""
    return store_of(path).real_path(path)


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


def sync(writer: Writer, path: Path) -> None:
    """Makes a file durable. Raises `OutputError`."""
    try:
        writer.sync()
    except OSError as error:
        raise OutputError(
            f"{path}: can't be synced to disk: {error.strerror}; no output was created."
        ) from error
