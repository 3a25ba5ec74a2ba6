"""Small files: written whole or not at all."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from ckptforge.checkpoints.unfinished import SUFFIX
from ckptforge.errors import OutputError
from ckptforge.storage.files import write_exactly
from ckptforge.storage.local import LocalWriter
from ckptforge.storage.store import Writer

_TEMPORARY = re.compile(rf"\.(.+){re.escape(SUFFIX)}-([0-9]{{1,9}})\.tmp", re.DOTALL)


def sync(writer: Writer, path: Path) -> None:
    """Brings a file to the disk. Raises `OutputError`."""
    try:
        writer.sync()
    except OSError as error:
        raise OutputError(
            f"{path}: can't be synced to disk: {error.strerror}; no output was created."
        ) from error


def write_small(path: Path, content: bytes) -> None:
    """Writes a small file and brings it to the disk. Raises `OutputError` and `OSError`."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    writer = LocalWriter(fd)
    try:
        write_exactly(writer, 0, content, path)
        sync(writer, path)
    finally:
        writer.close()


def temporary_path(path: Path) -> Path:
    """Where this process writes a small file before it takes its name."""
    return path.with_name(f".{path.name}{SUFFIX}-{os.getpid()}.tmp")


def temporary_of(path: Path) -> tuple[Path, int] | None:
    """(the file, the process) that a temporary path is of; None for another path."""
    match = _TEMPORARY.fullmatch(path.name)
    return (path.with_name(match[1]), int(match[2])) if match else None


def write_file(path: Path, content: bytes) -> None:
    """Writes one small file whole or not at all, in the place of an existing one. Raises
    `OutputError`."""
    temporary = temporary_path(path)
    try:
        write_small(temporary, content)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
