"""Files, directories and links in memory, and how a path leads to one."""

from __future__ import annotations

import errno
import os
import time
from itertools import count
from pathlib import Path
from typing import Protocol

from ckptforge.storage.mounts import absolute
from ckptforge.storage.store import Kind

_MAX_LINKS = 40  # on the way to a file


class Node:
    """A file, a directory or a link, whatever names it has."""

    def __init__(self, kind: Kind, number: int, mode: int) -> None:
        self.kind, self.number, self.mode = kind, number, mode
        self.owner = os.getuid(), os.getgid()
        self.mtime_ns = time.time_ns()
        self.data = bytearray()  # of a file, or where a link leads
        self.entries: dict[str, Node] = {}  # of a directory
        self.locked_by: set[object] = set()
        self.lock_shared = False


Change = tuple[Node, str, "Node | None"]  # a directory, a name in it, what has that name then


class Watcher(Protocol):
    """What is told of all that must be synced to be durable."""

    def changing(self, changes: tuple[Change, ...]) -> None:
        """Names are about to change, all in one step."""

    def synced(self, node: Node) -> None:
        """A file or a directory is durable as it is."""


class Nodes:
    """All nodes from the root. `root` is a directory that is there from the beginning, with those
    above it; together the files take at most `capacity` bytes."""

    def __init__(self, root: Path, capacity: int, watcher: Watcher | None) -> None:
        self.capacity, self.watcher = capacity, watcher
        self._numbers = count(1)
        self.top = self.make(Kind.DIRECTORY, 0o755)
        at = self.top
        for part in absolute(root).parts:
            at.entries[part] = self.make(Kind.DIRECTORY, 0o755)
            at = at.entries[part]

    def replace(self, top: Node) -> None:
        """Has other nodes from now on."""
        self.top = top
        self._numbers = count(max(node.number for node in nodes_in(top)) + 1)

    def make(self, kind: Kind, mode: int) -> Node:
        """A node that no name leads to."""
        return Node(kind, next(self._numbers), mode)

    def find(self, path: Path, *, follow: bool = True) -> Node:
        """What a path leads to, or with `follow=False` a link itself. Raises `OSError`."""
        parent, name = self.place(path, follow=follow)
        found = parent.entries.get(name) if name else parent
        if found is None:
            raise error_of(errno.ENOENT, path)
        return found

    def directory(self, path: Path) -> Node:
        """Raises `OSError` for what is none."""
        if (found := self.find(path)).kind is not Kind.DIRECTORY:
            raise error_of(errno.ENOTDIR, path)
        return found

    def place(self, path: Path, *, follow: bool = False) -> tuple[Node, str]:
        """The directory in which a path's last name stands, and that name; "" for the root. With
        `follow` the name isn't that of a link. Raises `OSError`."""
        walked = [self.top]
        parts, links = list(absolute(path).parts), 0
        while parts:
            part, at = parts.pop(0), walked[-1]
            if at.kind is not Kind.DIRECTORY:
                raise error_of(errno.ENOTDIR, path)
            if part == "..":
                walked = walked[:-1] or [self.top]
                continue
            found = at.entries.get(part)
            if found is not None and found.kind is Kind.LINK and (parts or follow):
                links += 1
                if links > _MAX_LINKS:
                    raise error_of(errno.ELOOP, path)
                target = Path(target_of(found))
                walked = [self.top] if target.is_absolute() else walked
                parts = [*target.parts, *parts]
                continue
            if not parts:
                return at, part
            if found is None:
                raise error_of(errno.ENOENT, path)
            walked.append(found)
        return walked[-1], ""

    def free_place(self, path: Path) -> tuple[Node, str]:
        """Where a new name is to stand. Raises `OSError` where something has it."""
        parent, name = self.place(path)
        if name in parent.entries or not name:
            raise error_of(errno.EEXIST, path)
        return parent, name

    def real_path(self, path: Path) -> Path:
        """The absolute path without links on its way."""
        whole = Path(os.path.normpath(absolute(path)))
        for _ in range(_MAX_LINKS):
            link = next((at for at in (*reversed(whole.parents), whole) if self._is_link(at)), None)
            if link is None:
                break
            target = target_of(self.find(link, follow=False))
            whole = Path(os.path.normpath(link.parent / target / whole.relative_to(link)))
        return whole

    def _is_link(self, path: Path) -> bool:
        try:
            return self.find(path, follow=False).kind is Kind.LINK
        except OSError:
            return False

    def change(self, *changes: Change) -> None:
        """Changes names in one step."""
        if self.watcher is not None:
            self.watcher.changing(changes)
        for directory, name, node in changes:
            if node is None:
                del directory.entries[name]
            else:
                directory.entries[name] = node
            directory.mtime_ns = time.time_ns()

    def resize(self, node: Node, size: int) -> None:
        """Gives a file a size, with zeros where it is longer. Raises `OSError`."""
        if size - len(node.data) > max(self.free_bytes(), 0):
            raise error_of(errno.ENOSPC, None)
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))
        node.mtime_ns = time.time_ns()

    def sync(self, node: Node) -> None:
        """Says that a file or a directory is durable."""
        if self.watcher is not None:
            self.watcher.synced(node)

    def free_bytes(self) -> int:
        """What files can still take."""
        return self.capacity - sum(len(node.data) for node in nodes_in(self.top))


def nodes_in(top: Node) -> set[Node]:
    """All that lies in a directory or below, and itself."""
    found, left = set(), [top]
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.entries.values()
    return found


def target_of(link: Node) -> str:
    """Where a link leads."""
    return os.fsdecode(bytes(link.data))


def error_of(number: int, path: Path | None) -> OSError:
    """What the system would raise."""
    return OSError(number, os.strerror(number), None if path is None else str(path))
