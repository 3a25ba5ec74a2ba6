"""What paths lead to, in whichever store."""

from __future__ import annotations

from pathlib import Path

from ckptforge.storage.mounts import store_of
from ckptforge.storage.store import Kind, Status


def status_of(path: Path, *, follow: bool = True) -> Status | None:
    """What a path leads to, or with `follow=False` a link itself; None for nothing, and for what
    the system won't say."""
    try:
        return store_of(path).status(path, follow=follow)
    except (OSError, ValueError):  # ValueError: a NUL, or what the system's encoding lacks
        return None


def is_file(path: Path) -> bool:
    """Whether a path leads to a regular file."""
    return (found := status_of(path)) is not None and found.kind is Kind.FILE


def is_directory(path: Path) -> bool:
    """Whether a path leads to a directory."""
    return (found := status_of(path)) is not None and found.kind is Kind.DIRECTORY


def is_link(path: Path) -> bool:
    """Whether a path is a symbolic link, wherever that leads."""
    return (found := status_of(path, follow=False)) is not None and found.kind is Kind.LINK


def exists(path: Path) -> bool:
    """Whether a path leads to anything."""
    return status_of(path) is not None


def has_name(path: Path) -> bool:
    """Whether anything has this name, be it a link to nowhere."""
    return status_of(path, follow=False) is not None


def real_path(path: Path) -> Path:
    """The absolute path without links on its way."""
    return store_of(path).real_path(path)
