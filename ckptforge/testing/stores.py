"""A file system on which something goes wrong at a chosen moment.

    with mounted(directory, FailingStore(DISK, fail(7, OSError(errno.EIO, "Input/output error")))):
        ckptforge.to_ms(...)

Each call of the file system, and of the files opened in it, is a `Call`. A *fault* is told of it
before it is made; it may raise, kill the process, or return how many bytes of a read or a write may
be done. `after` is told of it when it has been made.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from ckptforge.publish.file_system import FileSystem, LockableWriter
from ckptforge.storage.store import Reader, Room, Status

# What changes a file system, as the names of the methods.
CHANGES = frozenset(
    {
        "create",
        "write",
        "copy_from",
        "resize",
        "sync",
        "make_directory",
        "remove_directory",
        "unlink",
        "rename",
        "exchange",
        "link",
        "copy",
        "set_mode",
        "sync_directory",
    }
)


class Call(NamedTuple):
    """A call of the method `name`: of which path, with which second path; `offset` and `length` of
    a read or a write."""

    name: str
    path: Path
    other: Path | None = None
    offset: int = 0
    length: int = 0


Fault = Callable[[Call], int | None]


def _nothing(call: Call) -> None:
    """No fault."""


def counting(names: Collection[str] = CHANGES) -> tuple[Fault, Callable[[], int]]:
    """A fault that only counts calls, and how many there have been."""
    calls = itertools.count(1)
    last = [0]

    def fault(call: Call) -> None:
        if call.name in names:
            last[0] = next(calls)

    return fault, lambda: last[0]


def fail(
    number: int, error: BaseException, names: Collection[str] = CHANGES, *, ever: bool = False
) -> Fault:
    """A fault that raises at the `number`-th call of one of some methods; with `ever` at all those
    after it, too."""
    calls = itertools.count(1)

    def fault(call: Call) -> None:
        if call.name in names:
            at = next(calls)
            if at == number or (ever and at > number):
                raise error

    return fault


def fail_when(matches: Callable[[Call], bool], error: BaseException) -> Fault:
    """A fault that raises at calls that match."""

    def fault(call: Call) -> None:
        if matches(call):
            raise error

    return fault


def kill(number: int, names: Collection[str] = CHANGES) -> Fault:
    """A fault that kills the process before the `number`-th call of one of some methods."""
    calls = itertools.count(1)
    return kill_when(lambda call: call.name in names and next(calls) == number)


def kill_when(matches: Callable[[Call], bool]) -> Fault:
    """A fault that kills the process before a call that matches."""

    def fault(call: Call) -> None:
        if matches(call):
            os.kill(os.getpid(), signal.SIGKILL)

    return fault


class FailingStore:
    """A file system as `inner` is, with faults."""

    def __init__(
        self, inner: FileSystem, before: Fault = _nothing, after: Fault = _nothing
    ) -> None:
        self.inner, self.before, self.after = inner, before, after

    def _call(self, name: str, path: Path, other: Path | None = None) -> Call:
        call = Call(name, path, other)
        self.before(call)
        return call

    def status(self, path: Path, *, follow: bool = True) -> Status:
        self._call("status", path)
        return self.inner.status(path, follow=follow)

    def names(self, directory: Path) -> list[str]:
        self._call("names", directory)
        return self.inner.names(directory)

    def open(self, path: Path) -> FailingReader | None:
        self._call("open", path)
        found = self.inner.open(path)
        return None if found is None else FailingReader(found, path, self)

    def real_path(self, path: Path) -> Path:
        self._call("real_path", path)
        return self.inner.real_path(path)

    def create(self, path: Path) -> FailingWriter:
        call = self._call("create", path)
        made = FailingWriter(self.inner.create(path), path, self)
        self.after(call)
        return made

    def reopen(self, path: Path) -> FailingWriter | None:
        self._call("reopen", path)
        found = self.inner.reopen(path)
        return None if found is None else FailingWriter(found, path, self)

    def make_directory(self, path: Path) -> None:
        call = self._call("make_directory", path)
        self.inner.make_directory(path)
        self.after(call)

    def remove_directory(self, path: Path) -> None:
        call = self._call("remove_directory", path)
        self.inner.remove_directory(path)
        self.after(call)

    def unlink(self, path: Path) -> None:
        call = self._call("unlink", path)
        self.inner.unlink(path)
        self.after(call)

    def rename(self, path: Path, new: Path) -> None:
        call = self._call("rename", path, new)
        self.inner.rename(path, new)
        self.after(call)

    def exchange(self, a: Path, b: Path) -> None:
        call = self._call("exchange", a, b)
        self.inner.exchange(a, b)
        self.after(call)

    def link(self, path: Path, new: Path) -> None:
        call = self._call("link", path, new)
        self.inner.link(path, new)
        self.after(call)

    def copy(self, path: Path, new: Path) -> None:
        call = self._call("copy", path, new)
        self.inner.copy(path, new)
        self.after(call)

    def set_mode(self, path: Path, mode: int) -> None:
        call = self._call("set_mode", path)
        self.inner.set_mode(path, mode)
        self.after(call)

    def set_owner(self, path: Path, owner: tuple[int, int]) -> None:
        call = self._call("set_owner", path)
        self.inner.set_owner(path, owner)
        self.after(call)

    def sync_directory(self, directory: Path) -> None:
        call = self._call("sync_directory", directory)
        self.inner.sync_directory(directory)
        self.after(call)

    def room(self, directory: Path) -> Room:
        self._call("room", directory)
        return self.inner.room(directory)

    def mounts_below(self, directory: Path) -> list[str]:
        self._call("mounts_below", directory)
        return self.inner.mounts_below(directory)


class FailingReader:
    """A file as `inner` is, with the faults of its store."""

    def __init__(self, inner: Reader, path: Path, store: FailingStore) -> None:
        self.inner, self.path, self.store = inner, path, store

    def _call(self, name: str, offset: int = 0, length: int = 0) -> tuple[Call, int]:
        """The call, and how many bytes it may do."""
        call = Call(name, self.path, None, offset, length)
        fewer = self.store.before(call)
        return call, length if fewer is None else min(fewer, length)

    def status(self) -> Status:
        self._call("status")
        return self.inner.status()

    def read_into(self, offset: int, buffer: memoryview) -> int:
        _, length = self._call("read_into", offset, len(buffer))
        return self.inner.read_into(offset, buffer[:length])

    def begin_read(self, offset: int, length: int) -> None:
        self.inner.begin_read(offset, length)

    def close(self) -> None:
        call, _ = self._call("close")
        self.inner.close()
        self.store.after(call)


class FailingWriter(FailingReader):
    """A file that is being written, with the faults of its store."""

    def __init__(self, inner: LockableWriter, path: Path, store: FailingStore) -> None:
        super().__init__(inner, path, store)
        self.writer = inner

    def write(self, offset: int, data: memoryview) -> int:
        call, length = self._call("write", offset, len(data))
        done = self.writer.write(offset, data[:length])
        self.store.after(call)
        return done

    def copy_from(self, reader: Reader, source: int, offset: int, length: int) -> int:
        call, length = self._call("copy_from", offset, length)
        inner = reader.inner if isinstance(reader, FailingReader) else reader
        done = self.writer.copy_from(inner, source, offset, length) if length else 0
        self.store.after(call)
        return done

    def begin_sync(self, offset: int, length: int) -> None:
        self.writer.begin_sync(offset, length)

    def sync(self) -> None:
        call, _ = self._call("sync")
        self.writer.sync()
        self.store.after(call)

    def resize(self, size: int) -> None:
        call, _ = self._call("resize", size)
        self.writer.resize(size)
        self.store.after(call)

    def lock(self, shared: bool = False) -> bool:
        self._call("lock")
        return self.writer.lock(shared)
