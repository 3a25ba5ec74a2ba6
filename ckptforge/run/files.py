"""The open files of a run, shared by its workers."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ckptforge.planning.reads import Ranges
from ckptforge.storage.files import open_file
from ckptforge.storage.store import HashingReader, Reader, Writer


class OpenFiles:
    """Files to read, opened when they are first needed, of those in `read` these ranges alone, and
    `targets` to write, which are another's; and whether all workers are to stop."""

    def __init__(
        self,
        targets: Mapping[Path, Writer] | None = None,
        read: Mapping[Path, Ranges] | None = None,
    ) -> None:
        self.targets, self._read = targets or {}, read or {}
        self.stop = threading.Event()
        # Held over loops of many short system calls: two threads in such loops spend their time
        # handing over the interpreter.
        self.many_calls = threading.Lock()
        # Held while a file is written: two threads that write to one file would spin on the
        # system's lock of it.
        self.turns = {path: threading.Lock() for path in self.targets}
        self._sources: dict[Path, Reader] = {}
        self._opening = threading.Lock()

    def source(self, path: Path) -> Reader:
        """A file to read. Raises `InputNotFoundError`."""
        found = self._sources.get(path)
        if found is None:
            with self._opening:
                if path not in self._sources:
                    reader = open_file(path)
                    if isinstance(reader, HashingReader):
                        reader.expect(self._read.get(path))
                    self._sources[path] = reader
                found = self._sources[path]
        return found

    def forget(self, path: Path) -> None:
        """Closes a source that isn't read any more."""
        if (reader := self._sources.pop(path, None)) is not None:
            with suppress(OSError):
                reader.close()

    def close(self) -> None:
        """Closes what was opened to be read."""
        for reader in self._sources.values():
            with suppress(OSError):
                reader.close()
        self._sources.clear()
