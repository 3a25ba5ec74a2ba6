"""Which store answers for a path: this machine's disks, unless another is mounted above it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptforge.errors import InputNotFoundError, OutputError
from ckptforge.storage.address import absolute, address
from ckptforge.storage.local import DISK
from ckptforge.storage.store import FileSystem, Store

_mounts: list[tuple[Path, Store]] = []  # the last one that fits answers


@contextmanager
def mounted(place: Path | str, store: Store) -> Iterator[None]:
    """A store answers for all paths at and below `place`, a directory or an address (`memory://`),
    of the whole process."""
    mount = absolute(Path(place)), store
    _mounts.append(mount)
    try:
        yield
    finally:
        _mounts.remove(mount)


def store_of(path: Path) -> Store:
    """The store that answers for a path."""
    return _mounted(path) or DISK


def file_system_of(output: Path) -> FileSystem:
    """The file system that an output is to be made in. Raises `OutputError` for a store that is
    none."""
    store = store_of(output)
    if not isinstance(store, FileSystem):
        raise OutputError(f"{output}: lies in a store that can only be read; name another output.")
    return store


def _mounted(path: Path) -> Store | None:
    if not _mounts:
        return None
    whole = Path(os.path.normpath(absolute(path)))
    return next((store for place, store in reversed(_mounts) if whole.is_relative_to(place)), None)


def unknown_address(path: Path) -> str | None:
    """`path` as an address that no store is mounted for; None for one that is, and for a path. A
    directory on the disk of such a name is a path."""
    found = address(path)
    if found is None or _mounted(path) is not None or os.path.exists(path.parts[0]):
        return None
    return found


def refuse_address(path: Path) -> None:
    """Raises `InputNotFoundError` for an address, where an input has not been found."""
    if (found := unknown_address(path)) is not None:
        raise InputNotFoundError(
            f"{found}: is an address, and only files and directories are read: download it first."
        )
