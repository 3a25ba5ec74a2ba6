"""Opening, reading and writing files whole, with errors that name the file."""

from __future__ import annotations

from pathlib import Path

from ckptforge.errors import FormatError, InputNotFoundError, OutputError, ReadError
from ckptforge.storage.address import refuse_address
from ckptforge.storage.local import open_local
from ckptforge.storage.store import Reader, Writer


def open_file(path: Path) -> Reader:
    """A regular file, opened for reading. Raises `InputNotFoundError`, naming the path and the
    system's reason."""
    try:
        reader = open_local(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL, or what the system's encoding lacks
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
                "bytes more; "
                "the file was cut off or changed while it was read."
            )
        done += count


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
