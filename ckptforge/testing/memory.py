"""A file system in memory: for tests, and for outputs that are small and needn't outlive the
process. Mounted at a directory or at `memory://`, it holds what is written there."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from functools import wraps
from itertools import count
from pathlib import Path
from typing import Any, TypeVar, cast

from ckptforge.storage.store import Kind, Reader, Room, Status
from ckptforge.testing.nodes import Node, Nodes, Watcher, error_of, nodes_in, target_of

_BLOCK = 4096
_DEVICES = count(1 << 40)  # no device of the system has such a number

M = TypeVar("M", bound=Callable[..., Any])


def _alone(method: M) -> M:
    """A method during which no other thread changes anything."""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.guard:
            return method(self, *args, **kwargs)

    return cast(M, call)


class Memory:
    """Directories, files, links and locks as POSIX has them. `root` is the directory where it is
    mounted. Modes are kept and hinder nobody."""

    def __init__(self, root: Path, capacity: int = 1 << 40, watcher: Watcher | None = None) -> None:
        self.root = root
        self.nodes = Nodes(root, capacity, watcher)
        self.guard = threading.RLock()
        self.device = next(_DEVICES)

    @_alone
    def status(self, path: Path, *, follow: bool = True) -> Status:
        return self.status_of(self.nodes.find(path, follow=follow))

    def status_of(self, node: Node) -> Status:
        """What is known of a node."""
        return Status(
            kind=node.kind,
            size=len(node.data),
            mtime_ns=node.mtime_ns,
            mode=node.mode,
            owner=node.owner,
            number=(self.device, node.number),
            disk_bytes=-(-len(node.data) // _BLOCK) * _BLOCK,
        )

    @_alone
    def names(self, directory: Path) -> list[str]:
        return list(self.nodes.directory(directory).entries)

    @_alone
    def open(self, path: Path) -> _File | None:
        found = self.nodes.find(path)
        return _File(self, found) if found.kind is Kind.FILE else None

    @_alone
    def real_path(self, path: Path) -> Path:
        return self.nodes.real_path(path)

    @_alone
    def create(self, path: Path) -> _File:
        parent, name = self.nodes.place(path)
        if name not in parent.entries:
            self.nodes.change((parent, name, self.nodes.make(Kind.FILE, 0o644)))
        return self.reopen(path)

    @_alone
    def reopen(self, path: Path) -> _File:
        found = self.nodes.find(path, follow=False)
        if found.kind is not Kind.FILE:
            raise error_of(errno.ELOOP if found.kind is Kind.LINK else errno.EISDIR, path)
        return _File(self, found)

    @_alone
    def make_directory(self, path: Path) -> None:
        self.nodes.change((*self.nodes.free_place(path), self.nodes.make(Kind.DIRECTORY, 0o755)))

    @_alone
    def make_link(self, path: Path, target: str) -> None:
        """Makes a symbolic link, which publishing never does."""
        node = self.nodes.make(Kind.LINK, 0o777)
        node.data = bytearray(os.fsencode(target))
        self.nodes.change((*self.nodes.free_place(path), node))

    @_alone
    def remove_directory(self, path: Path) -> None:
        found = self.nodes.find(path, follow=False)
        if found.kind is not Kind.DIRECTORY:
            raise error_of(errno.ENOTDIR, path)
        if found.entries:
            raise error_of(errno.ENOTEMPTY, path)
        self.nodes.change((*self.nodes.place(path), None))

    @_alone
    def unlink(self, path: Path) -> None:
        if self.nodes.find(path, follow=False).kind is Kind.DIRECTORY:
            raise error_of(errno.EISDIR, path)
        self.nodes.change((*self.nodes.place(path), None))

    @_alone
    def rename(self, path: Path, new: Path) -> None:
        node = self.nodes.find(path, follow=False)
        target, title = self.nodes.place(new)
        old = target.entries.get(title)
        if old is node:
            return
        if target in nodes_in(node):
            raise error_of(errno.EINVAL, path)
        if old is not None and (old.kind is Kind.DIRECTORY) != (node.kind is Kind.DIRECTORY):
            raise error_of(errno.EISDIR if old.kind is Kind.DIRECTORY else errno.ENOTDIR, new)
        if old is not None and old.entries:
            raise error_of(errno.ENOTEMPTY, new)
        self.nodes.change((*self.nodes.place(path), None), (target, title, node))

    @_alone
    def exchange(self, a: Path, b: Path) -> None:
        one, other = self.nodes.find(a, follow=False), self.nodes.find(b, follow=False)
        self.nodes.change((*self.nodes.place(a), other), (*self.nodes.place(b), one))

    @_alone
    def link(self, path: Path, new: Path) -> None:
        node = self.nodes.find(path, follow=False)
        if node.kind is Kind.DIRECTORY:
            raise error_of(errno.EPERM, path)
        self.nodes.change((*self.nodes.free_place(new), node))

    @_alone
    def copy(self, path: Path, new: Path) -> None:
        found = self.nodes.find(path, follow=False)
        if found.kind is Kind.LINK:
            self.make_link(new, target_of(found))
            return
        made = self.create(new).node
        self.nodes.resize(made, len(found.data))
        made.data[:] = found.data
        made.mode, made.mtime_ns = found.mode, found.mtime_ns

    @_alone
    def set_mode(self, path: Path, mode: int) -> None:
        self.nodes.find(path).mode = mode & 0o7777

    @_alone
    def set_owner(self, path: Path, owner: tuple[int, int]) -> None:
        self.nodes.find(path).owner = owner

    @_alone
    def sync_directory(self, directory: Path) -> None:
        self.nodes.sync(self.nodes.directory(directory))

    @_alone
    def room(self, directory: Path) -> Room:
        return Room(self.nodes.free_bytes(), read_only=False, permitted=True)

    def mounts_below(self, directory: Path) -> list[str]:
        """Itself, where it is mounted there."""
        place, root = self.real_path(directory), self.real_path(self.root)
        return [str(root)] if root.is_relative_to(place) else []


class _File:
    """An open file: a node, whatever has its name now."""

    def __init__(self, memory: Memory, node: Node) -> None:
        self.memory, self.node = memory, node
        self.guard = memory.guard

    @_alone
    def status(self) -> Status:
        return self.memory.status_of(self.node)

    @_alone
    def read_into(self, offset: int, buffer: memoryview) -> int:
        found = self.node.data[offset : offset + len(buffer)]
        buffer[: len(found)] = found
        return len(found)

    def begin_read(self, offset: int, length: int) -> None:
        """Nothing to bring."""

    def drop_cached(self, offset: int, length: int) -> None:
        """There is no other place."""

    @_alone
    def write(self, offset: int, data: memoryview) -> int:
        end = offset + len(data)
        if end > len(self.node.data):
            self.memory.nodes.resize(self.node, end)
        self.node.data[offset:end] = data
        self.node.mtime_ns = time.time_ns()
        return len(data)

    @_alone
    def copy_from(self, reader: Reader, source: int, offset: int, length: int) -> int:
        if not isinstance(reader, _File):
            return 0
        return self.write(offset, memoryview(bytes(reader.node.data[source : source + length])))

    def begin_sync(self, offset: int, length: int) -> None:
        """What is in memory can't be brought nearer to durable."""

    @_alone
    def sync(self) -> None:
        self.memory.nodes.sync(self.node)

    @_alone
    def resize(self, size: int) -> None:
        self.memory.nodes.resize(self.node, size)

    @_alone
    def lock(self, shared: bool = False) -> bool:
        others = self.node.locked_by - {self}
        if others and not (shared and self.node.lock_shared):
            return False
        self.node.locked_by, self.node.lock_shared = {*others, self}, shared
        return True

    @_alone
    def close(self) -> None:
        self.node.locked_by.discard(self)
