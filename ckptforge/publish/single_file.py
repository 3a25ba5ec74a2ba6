"""Small files: written whole or not at all."""

from __future__ import annotations

import os
import re
from contextlib import closing, suppress
from pathlib import Path

from ckptforge.checkpoints.unfinished import SUFFIX
from ckptforge.errors import OutputError
from ckptforge.publish.file_system import FileSystem, file_system_of, sync
from ckptforge.storage.files import write_exactly

_TEMPORARY = re.compile(rf"\.(.+){re.escape(SUFFIX)}-([0-9]{{1,9}})\.tmp", re.DOTALL)


def write_small(disk: FileSystem, path: Path, content: bytes) -> None:
    """Writes a small file and makes it durable, but for its name. Raises `OSError`."""
    with closing(disk.create(path)) as writer:
        writer.resize(0)
        write_exactly(writer, 0, content, path)
        sync(writer, path)


def temporary_of(path: Path) -> tuple[Path, int] | None:
    """(the file, the process) that a temporary path is of; None for another path."""
    match = _TEMPORARY.fullmatch(path.name)
    return (path.with_name(match[1]), int(match[2])) if match else None


def write_file(path: Path, content: bytes) -> None:
    """Writes, or replaces, one small file whole or not at all. Raises `OutputError`."""
    disk = file_system_of(path)
    temporary = path.with_name(f".{path.name}{SUFFIX}-{os.getpid()}.tmp")
    try:
        write_small(disk, temporary, content)
        disk.rename(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror}.") from error
    finally:
        with suppress(OSError):
            disk.unlink(temporary)
