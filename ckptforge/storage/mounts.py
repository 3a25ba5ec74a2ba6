"""Which store answers for a path: this machine's disks, unless another is mounted above it. An
address of a store, such as `s3://bucket/model`, may stand where a path is expected."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from ckptforge.errors import InputNotFoundError
from ckptforge.storage.address import address, scheme_of
from ckptforge.storage.endpoints import endpoint_of
from ckptforge.storage.local import DISK
from ckptforge.storage.schemes import store_for
from ckptforge.storage.store import Store
from ckptforge.wording import install_hint

_ROOT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_mounts: list[tuple[Path, Store]] = []  # the last one that fits answers
_disk: ContextVar[Store] = ContextVar("_disk", default=DISK)  # for what nothing is mounted above


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


@contextmanager
def through(disk: Store) -> Iterator[None]:
    """A store answers for this machine's disks in this thread, and in those that work for it
    (`run/pool.py`)."""
    before = _disk.set(disk)
    try:
        yield
    finally:
        _disk.reset(before)


def disk() -> Store:
    """The store that answers for this machine's disks."""
    return _disk.get()


def mount(place: Path, store: Store) -> None:
    """A store answers for all paths at and below `place` for as long as the process lives."""
    _mounts.insert(0, (absolute(place), store))


def store_of(path: Path) -> Store:
    """The store that answers for a path. Raises `InputNotFoundError` where reading an address needs
    a package that isn't installed."""
    return _mounted(path) or _far(path) or disk()


def _mounted(path: Path) -> Store | None:
    if not _mounts:
        return None
    whole = Path(os.path.normpath(absolute(path)))
    return next((store for place, store in reversed(_mounts) if whole.is_relative_to(place)), None)


def _far(path: Path) -> Store | None:
    scheme = scheme_of(path)
    # a directory on the disk of such a name is a path
    if scheme is None or os.path.exists(path.parts[0]):
        return None
    return store_for(scheme, endpoint_of(path))


def unmounted_address(path: Path) -> str | None:
    """`path` as an address that no store is mounted for, so that it can't be written; None for one
    that is, and for a path. A directory on the disk of such a name is a path."""
    found = address(path)
    if found is None or _mounted(path) is not None or os.path.exists(path.parts[0]):
        return None
    return found


def unknown_address(path: Path) -> str | None:
    """`path` as an address that no store reads; None for one that can be read, and for a path."""
    found = unmounted_address(path)
    return None if found is None or _far(path) is not None else found


def refuse_address(path: Path) -> None:
    """Raises `InputNotFoundError` for an address, where an input has not been found."""
    if (found := unknown_address(path)) is not None:
        raise InputNotFoundError(
            f"{found}: is an address that ckptforge can't read: download it first, or install "
            f"fsspec and what it needs for {scheme_of(path)}:// ({install_hint('fsspec')})."
        )


def absolute(path: Path) -> Path:
    """A path from the root of its store: an address is one already, as is `memory://` itself."""
    if address(path) is not None or _ROOT.fullmatch(str(path)):
        return path
    return path.absolute()
