"""Directories with all that lies in them, on a file system."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ckptforge.publish.file_system import FileSystem
from ckptforge.storage.store import Kind


def lies_at(disk: FileSystem, path: Path, *kinds: Kind, follow: bool = False) -> bool:
    """Whether something, of one of some `kinds`, lies at a path. Raises `OSError`."""
    try:
        found = disk.status(path, follow=follow)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return not kinds or found.kind in kinds


def walk(disk: FileSystem, directory: Path) -> Iterator[tuple[Path, list[str]]]:
    """A directory and those below it, each before what is in it, with the names in it of what isn't
    a directory itself: a link is none. Raises `OSError` for what can't be listed."""
    below: list[str] = []
    others: list[str] = []
    for name in sorted(disk.names(directory)):
        kind = disk.status(directory / name, follow=False).kind
        (below if kind is Kind.DIRECTORY else others).append(name)
    yield directory, others
    for name in below:
        yield from walk(disk, directory / name)


def names_in(disk: FileSystem, directory: Path) -> list[str]:
    """Every file and link in a directory and below, as paths relative to it. Raises `OSError`."""
    below = ((root, name) for root, names in walk(disk, directory) for name in names)
    return [str((root / name).relative_to(directory)) for root, name in below]


def make_directories(disk: FileSystem, directory: Path) -> list[Path]:
    """Makes a directory and those above it; returns the new ones, highest first."""
    missing = []
    while not lies_at(disk, directory, follow=True):
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        with suppress(FileExistsError):  # another made it
            disk.make_directory(path)
    return missing[::-1]


def remove_tree(disk: FileSystem, directory: Path) -> None:
    """Removes a directory, whatever the modes in it. Raises `OSError`."""
    mode = disk.status(directory, follow=False).mode
    if mode & 0o700 != 0o700:
        with suppress(OSError):
            disk.set_mode(directory, mode | 0o700)
    for name in disk.names(directory):
        path = directory / name
        if lies_at(disk, path, Kind.DIRECTORY):
            remove_tree(disk, path)
        else:
            remove(disk, path)
    disk.remove_directory(directory)


def remove(disk: FileSystem, path: Path) -> None:
    """Removes a file or a link, if it is there. Raises `OSError`."""
    with suppress(FileNotFoundError):
        disk.unlink(path)


def disk_bytes(disk: FileSystem, directory: Path) -> int:
    """What all files in a directory take up. Raises `OSError`."""
    files = (root / name for root, names in walk(disk, directory) for name in names)
    return sum(disk.status(file, follow=False).disk_bytes for file in files)
