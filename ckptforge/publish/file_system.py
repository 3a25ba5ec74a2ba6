"""What a store must be able to do for an output to appear in it whole or not at all: files are
written under another name, synced, and renamed, under a lock (`publish/staging.py`). A store
without renames and locks needs a way of its own (`publish/publisher.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from ckptforge.errors import OutputError
from ckptforge.storage.mounts import store_of
from ckptforge.storage.store import Room, Store, Writer


class LockableWriter(Writer, Protocol):
    """A file of a file system that is being written."""

    def resize(self, size: int) -> None:
        """Cuts the file off, or extends it with zeros, to this many bytes."""

    def lock(self, shared: bool = False) -> bool:
        """Whether this now holds the file's lock, alone or with others that share it, until it is
        closed; the lock goes with a process that dies. True on a file system without locks."""


@runtime_checkable
class FileSystem(Store, Protocol):
    """A store with files, directories, links, renames and locks, as POSIX has them.

    What is changed isn't durable before it is synced: `Writer.sync` for what a file holds,
    `sync_directory` for the names in a directory. Either may become durable earlier, in any order.
    """

    def create(self, path: Path) -> LockableWriter:
        """Opens a file for writing, as it is or new, and no link."""

    def reopen(self, path: Path) -> LockableWriter | None:
        """Opens a regular file that is there for writing; None for anything else but a link."""

    def make_directory(self, path: Path) -> None:
        """Makes a directory in one that is there."""

    def remove_directory(self, path: Path) -> None:
        """Removes an empty directory."""

    def unlink(self, path: Path) -> None:
        """Removes the name of a file or a link."""

    def rename(self, path: Path, new: Path) -> None:
        """Gives a file or directory another name in one step, in the place of a file or an empty
        directory that has it."""

    def exchange(self, a: Path, b: Path) -> None:
        """Swaps two names in one step. `OSError` where the file system can't."""

    def link(self, path: Path, new: Path) -> None:
        """Gives a file, or a link itself, a second name, which nothing may have. `OSError` where
        the file system can't."""

    def copy(self, path: Path, new: Path) -> None:
        """Copies a file, or a link itself, with its mode and times."""

    def set_mode(self, path: Path, mode: int) -> None:
        """Sets the permissions of a file or directory."""

    def set_owner(self, path: Path, owner: tuple[int, int]) -> None:
        """Sets the (user, group) of a file or directory."""

    def sync_directory(self, directory: Path) -> None:
        """Makes the names in a directory durable."""

    def room(self, directory: Path) -> Room:
        """What can be written in a directory."""

    def mounts_below(self, directory: Path) -> list[str]:
        """Other file systems at or below a directory, which can be neither moved nor removed with
        it."""


def file_system_of(output: Path) -> FileSystem:
    """The file system that an output is to be made in. Raises `OutputError` for a store that is
    none."""
    store = store_of(output)
    if not isinstance(store, FileSystem):
        raise OutputError(f"{output}: lies in a store that can only be read; name another output.")
    return store


def sync(writer: Writer, path: Path) -> None:
    """Makes a file durable. Raises `OutputError`."""
    try:
        writer.sync()
    except OSError as error:
        raise OutputError(
            f"{path}: can't be synced to disk: {error.strerror}; no output was created."
        ) from error
