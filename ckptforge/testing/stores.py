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
from typing import Any, NamedTuple

from ckptforge.publish.file_system import FileSystem, LockableWriter
from ckptforge.storage.store import Reader, Status

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


def _told(name: str) -> Any:
    """A method that tells of its call, before and after that of `inner`."""

    def method(self: FailingStore, path: Path, *more: Any, **keywords: Any) -> Any:
        call = self.told(name, path, *(one for one in more if isinstance(one, Path)))
        found = getattr(self.inner, name)(path, *more, **keywords)
        self.after(call)
        return found

    return method


class FailingStore:
    """A file system as `inner` is, with faults."""

    def __init__(
        self, inner: FileSystem, before: Fault = _nothing, after: Fault = _nothing
    ) -> None:
        self.inner, self.before, self.after = inner, before, after

    def told(self, name: str, path: Path, other: Path | None = None) -> Call:
        """A call that is about to be made."""
        call = Call(name, path, other)
        self.before(call)
        return call

    def open(self, path: Path) -> _Reader | None:
        """A file whose calls are told of, too."""
        self.told("open", path)
        found = self.inner.open(path)
        return None if found is None else _Reader(found, path, self)

    def create(self, path: Path) -> _Writer:
        """A file whose calls are told of, too."""
        call = self.told("create", path)
        made = _Writer(self.inner.create(path), path, self)
        self.after(call)
        return made

    def reopen(self, path: Path) -> _Writer | None:
        """A file whose calls are told of, too."""
        self.told("reopen", path)
        found = self.inner.reopen(path)
        return None if found is None else _Writer(found, path, self)

    status = _told("status")
    names = _told("names")
    real_path = _told("real_path")
    room = _told("room")
    mounts_below = _told("mounts_below")
    make_directory = _told("make_directory")
    remove_directory = _told("remove_directory")
    unlink = _told("unlink")
    rename = _told("rename")
    exchange = _told("exchange")
    link = _told("link")
    copy = _told("copy")
    set_mode = _told("set_mode")
    set_owner = _told("set_owner")
    sync_directory = _told("sync_directory")


class _Reader:
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

    def drop_cached(self, offset: int, length: int) -> None:
        self.inner.drop_cached(offset, length)

    def close(self) -> None:
        call, _ = self._call("close")
        self.inner.close()
        self.store.after(call)


class _Writer(_Reader):
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
        inner = reader.inner if isinstance(reader, _Reader) else reader
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
