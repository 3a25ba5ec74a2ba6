"""Moving bytes between files: by the kernel where it can, else through a buffer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

from ckptforge.run.buffers import LINE, PIECE_BYTES, Buffers, copy_runs, slow_to_copy
from ckptforge.storage.files import read_exactly, write_exactly
from ckptforge.storage.store import Reader, Writer
from ckptforge.values import Place, Stored


def paired_ranges(
    source: Stored, start: int, target: Place, to: int, length: int
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
    source: Stored,
    reader: Reader,
    source_at: int,
    target: Place,
    writer: Writer,
    target_at: int,
    length: int,
    buffers: Buffers,
    turn: AbstractContextManager[object],
) -> None:
    """Copies one run of bytes from file to file; `turn` is held while the target is written. Raises
    `FormatError` for the source and `OutputError` for the target.

    Where the kernel would be slow, the bytes are shifted here.
    """
    kernel = not slow_to_copy(source_at, target_at)
    shifting = slow_to_copy(source_at, target_at, LINE)
    while length > 0:
        count = 0
        if kernel:
            with turn:
                count = _kernel_copy(reader, source_at, writer, target_at, length)
            kernel = count > 0
        if not count:
            count = min(length, PIECE_BYTES - target_at % PIECE_BYTES)
            read, shifted = buffers.lend((count, source_at), (count, target_at))
            read_exactly(reader, source_at, read.data, source.path)
            if shifting:
                copy_runs(read, shifted)
            with turn:
                write_exactly(
                    writer, target_at, shifted.data if shifting else read.data, target.path
                )
        source_at, target_at, length = source_at + count, target_at + count, length - count


def _kernel_copy(
    reader: Reader, source_at: int, writer: Writer, target_at: int, length: int
) -> int:
    """Bytes copied. 0 where the system or a file system doesn't do it, at the end of the source,
    and on errors: reading and writing then say what is wrong, and with which file."""
    try:
        return writer.copy_from(reader, source_at, target_at, length)
    except OSError:
        return 0
