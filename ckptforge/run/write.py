"""Moving bytes between files: by the kernel where it can, else through a buffer; and writing whole
buffers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from ckptforge.errors import OutputError
from ckptforge.formats.entry import TensorEntry
from ckptforge.run.buffers import LINE, Buffers, copy_runs, slow_to_copy
from ckptforge.storage.local import read_exactly

PIECE_BYTES = 256 * 1024  # stays in a core's cache
# Smaller pieces cost calls, each of which lets go of the interpreter. Larger ones make the system
# look for large runs of free pages, which on virtual machines the host may first have to provide:
# measured for 600 MB 0.20 s at 64 KiB, 0.18 s at 128 KiB, 0.17 to 1.1 s at 512 KiB and more.
_WRITE_BYTES = 128 * 1024


def write_exactly(fd: int, offset: int, data: memoryview | bytes, path: Path) -> None:
    """Writes all of `data` at byte `offset`. Raises `OutputError` with the system's reason."""
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        try:
            done += os.pwrite(fd, view[done : done + _WRITE_BYTES], offset + done)
        except OSError as error:
            raise OutputError(
                f"{path}: writing at byte {offset + done} failed: {error.strerror}; "
                "no output was created."
            ) from error


def begin_writeback(fd: int, offset: int, length: int) -> None:
    """Asks the system to bring these bytes to the disk now, so that the sync at the end finds
    little left to do.

    For bytes not yet on the disk that is what POSIX_FADV_DONTNEED does on Linux (mm/fadvise.c);
    elsewhere nothing is lost.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)


def paired_ranges(
    source: TensorEntry, start: int, target: TensorEntry, to: int, length: int
) -> Iterator[tuple[int, int, int]]:
    """(source offset, target offset, length) of the runs that `length` bytes of a tensor are, from
    byte `start` to byte `to`, cut where either file cuts them."""
    from_ranges, to_ranges = source.file_ranges(start, length), target.file_ranges(to, length)
    source_at = target_at = source_left = target_left = 0
    while length > 0:
        if not source_left:
            source_at, source_left = next(from_ranges)
        if not target_left:
            target_at, target_left = next(to_ranges)
        take = min(source_left, target_left)
        yield source_at, target_at, take
        source_at, target_at = source_at + take, target_at + take
        source_left, target_left, length = source_left - take, target_left - take, length - take


def move_bytes(
    source: TensorEntry,
    source_fd: int,
    source_at: int,
    target: TensorEntry,
    target_fd: int,
    target_at: int,
    length: int,
    buffers: Buffers,
    turn: AbstractContextManager[object],
) -> None:
    """Copies one run of bytes from file to file; `turn` is held while the target is written. Raises
    `FormatError` for the source and `OutputError` for the target.

    Where the kernel would be slow, the bytes are shifted here.
    """
    kernel = not slow_to_copy(source_at, target_at) and hasattr(os, "copy_file_range")
    shifting = slow_to_copy(source_at, target_at, LINE)
    while length > 0:
        count = 0
        if kernel:
            with turn:
                count = _kernel_copy(source_fd, source_at, target_fd, target_at, length)
            kernel = count > 0
        if not count:
            count = min(length, PIECE_BYTES - target_at % PIECE_BYTES)
            read, shifted = buffers.lend((count, source_at), (count, target_at))
            read_exactly(source_fd, source_at, read.data, source.path)
            if shifting:
                copy_runs(read, shifted)
            with turn:
                write_exactly(
                    target_fd, target_at, shifted.data if shifting else read.data, target.path
                )
        source_at, target_at, length = source_at + count, target_at + count, length - count


def _kernel_copy(
    source_fd: int, source_at: int, target_fd: int, target_at: int, length: int
) -> int:
    """Bytes copied. 0 where the system or a file system doesn't do it, at the end of the source,
    and on errors: reading and writing then say what is wrong, and with which file."""
    try:
        return os.copy_file_range(source_fd, target_fd, length, source_at, target_at)
    except OSError:
        return 0
