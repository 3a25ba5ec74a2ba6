"""Files on this machine's disks."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ckptforge.errors import FormatError, InputNotFoundError, ReadError
from ckptforge.storage.address import refuse_address


def open_file(path: Path) -> int:
    """A read-only descriptor of a regular file. Raises `InputNotFoundError`, naming the path and
    the system's reason."""
    fd = None
    try:
        # to open a device may do something, to open a pipe may wait
        if regular := stat.S_ISREG(os.stat(path).st_mode):
            fd = os.open(
                path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
            )
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
    except (OSError, ValueError) as error:  # ValueError: a NUL, or what the system's encoding lacks
        refuse_address(path)
        raise InputNotFoundError(
            f"{path}: can't be opened: {getattr(error, 'strerror', None) or error}."
        ) from error
    if fd is None or not regular:
        if fd is not None:
            os.close(fd)
        raise InputNotFoundError(f"{path}: isn't a regular file.")
    return fd


def read_exactly(fd: int, offset: int, into: memoryview, path: Path) -> None:
    """Fills `into` from byte `offset`. Raises `FormatError` at the end of the file and on read
    errors."""
    done = 0
    while done < len(into):
        try:
            count = os.preadv(fd, [into[done:]], offset + done)
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
