"""Files of fsspec's file systems: written under another name, and moved at the end, which some
services do by copying."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckptforge.remote.fsspec_calls import as_faults, file_system
from ckptforge.remote.memory import Memory
from ckptforge.remote.objects import Passing
from ckptforge.remote.uploads import Begun, Upload


class FsspecUploads:
    """Uploads to whatever fsspec knows. Nothing of a run that was stopped is gone on with."""

    resumable = False

    def begin(self, path: Path, staged: Path, flights: int) -> Upload:
        """A file that is made under the name `staged`."""
        return _FsspecUpload(path, staged)

    def take_up(self, path: Path, staged: Path, size: int, left: dict[str, Any]) -> Upload | None:
        """The file of that name, if it has the size."""
        with _lasting(staged):
            system, inner = file_system(staged)
            there = system.exists(inner) and system.size(inner) == size
        return _FsspecUpload(path, staged) if there else None

    def write(self, path: Path, content: bytes, replace: bool) -> None:
        """By `pipe_file`. Between asking whether it is there and writing, another may write it."""
        with _lasting(path):
            system, inner = file_system(path)
            _refuse_there(system, inner, path, replace)
            system.pipe_file(inner, content)

    def remove(self, path: Path) -> None:
        """By `rm`, with all that lies below."""
        with _lasting(path):
            system, inner = file_system(path)
            if system.exists(inner):
                system.rm(inner, recursive=True)

    def begun(self, path: Path) -> Iterator[Begun]:
        """None: fsspec doesn't list what was begun."""
        yield from ()

    def give_up(self, begun: Begun) -> None:
        """Nothing is there to be given up."""


class _FsspecUpload:
    name = None

    def __init__(self, path: Path, staged: Path) -> None:
        self._path, self._staged = path, staged
        self._file: Any = None

    def put(self, number: int, data: Memory) -> None:
        """Writes it behind the others."""
        with _lasting(self._path):
            if self._file is None:
                system, inner = file_system(self._staged)
                system.makedirs(inner.rpartition("/")[0], exist_ok=True)
                self._file = system.open(inner, "wb")
            self._file.write(bytes(data))

    def settle(self) -> dict[str, Any]:
        """Closes the file; nothing needs to be known to take it up."""
        with _lasting(self._path):
            if self._file is not None:
                self._file.close()
        return {}

    def complete(self, replace: bool) -> None:
        """Moves the file to its name, which some services do by copying."""
        with _lasting(self._path):
            system, inner = file_system(self._path)
            _refuse_there(system, inner, self._path, replace)
            if system.exists(inner):
                system.rm_file(inner)
            elif parent := inner.rpartition("/")[0]:
                system.makedirs(parent, exist_ok=True)
            system.mv(file_system(self._staged)[1], inner)

    def abort(self) -> None:
        """Removes the file."""
        self.settle()
        FsspecUploads().remove(self._staged)


def _refuse_there(system: Any, inner: str, path: Path, replace: bool) -> None:
    if not replace and system.exists(inner):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


@contextmanager
def _lasting(path: Path) -> Iterator[None]:
    """Raises `OSError`: what was written in part isn't written again."""
    try:
        with as_faults(path):
            yield
    except Passing as error:
        raise OSError(errno.EIO, str(error), str(path)) from error
