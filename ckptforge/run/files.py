"""The open files of a run, shared by its workers."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ckptforge.storage.files import open_file
from ckptforge.storage.store import Reader, Writer


@dataclass
class OpenFiles:
    """Files to read, opened when they are first needed, and files to write, which are another's;
    and whether all workers are to stop."""

    targets: Mapping[Path, Writer] = field(default_factory=dict)
    sources: dict[Path, Reader] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    # Held over loops of many short system calls: two threads in such loops spend their time handing
    # over the interpreter.
    many_calls: threading.Lock = field(default_factory=threading.Lock)
    # Held while a file is written: two threads that write to one file would spin on the system's
    # lock of it.
    writing: Mapping[Path, threading.Lock] = field(init=False)

    def __post_init__(self) -> None:
        self.writing = {path: threading.Lock() for path in self.targets}

    def target(self, path: Path) -> Writer:
        """A file that is being written."""
        return self.targets[path]

    def source(self, path: Path) -> Reader:
        """A file to read. Raises `InputNotFoundError`."""
        found = self.sources.get(path)
        if found is None:
            with self.lock:
                if path not in self.sources:
                    self.sources[path] = open_file(path)
                found = self.sources[path]
        return found

    def close(self) -> None:
        """Closes what was opened to be read."""
        for reader in self.sources.values():
            with suppress(OSError):
                reader.close()
        self.sources.clear()
