"""What is asked of a place that holds objects; `remote/store.py` makes a store of it."""

from __future__ import annotations

import errno
import zlib
from pathlib import Path
from typing import Protocol

import msgspec


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an object: its size in bytes, when it was changed (seconds since 1970, 0 if
    that isn't said), and its `version`, a text that another content has not: mostly its etag."""

    size: int
    version: str
    modified: int = 0

    @property
    def mtime_ns(self) -> int:
        """The time of change, with nanoseconds that stand for the version: no service says them,
        and whoever compares times sees another content that came in the same second."""
        return self.modified * 10**9 + zlib.crc32(self.version.encode()) % 10**9


class Passing(Exception):
    """A fault that may pass: a busy service, a connection that was cut. `done` bytes of a range had
    come; the service asks for `wait` seconds."""

    def __init__(self, reason: str, done: int = 0, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.done, self.wait = done, wait


class Objects(Protocol):
    """A service that holds objects under addresses. Its methods raise `Passing`, or `OSError` for
    what stays as it is; threads share them."""

    def facts(self, path: Path) -> Facts | None:
        """Of the object at an address; None where there is none."""

    def names(self, directory: Path) -> list[str]:
        """What lies directly below an address; nothing where that isn't known."""

    def fetch(self, path: Path, facts: Facts, start: int, into: memoryview) -> int:
        """Puts bytes of the object from byte `start` into a buffer by one request; returns how
        many. Raises `changed` where it isn't what `facts` say any more."""


def changed(path: Path) -> OSError:
    """The error for an object that was replaced while it was read."""
    return OSError(errno.ESTALE, "it was changed while it was read; begin again", str(path))
