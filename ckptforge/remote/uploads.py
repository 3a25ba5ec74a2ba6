"""What a service must be able to do for outputs to appear in it; `remote/publishing.py` makes a
publisher of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ckptforge.remote.memory import Memory


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """An upload that was begun and neither completed nor aborted: the object that it is of, what
    the service calls it, and the bytes that have come."""

    path: Path
    name: str
    nbytes: int


class Upload(Protocol):
    """One object in the making, which nobody sees before it is completed. Raises `OSError`."""

    @property
    def name(self) -> str | None:
        """What the service calls it, where it has a name yet (`Begun.name`)."""

    def put(self, number: int, data: Memory) -> None:
        """Takes the next part; waits while too many are on their way."""

    def settle(self) -> dict[str, Any]:
        """Waits until all parts are there; returns what `Uploads.take_up` goes on from."""

    def complete(self, replace: bool) -> None:
        """Makes the object appear. Raises `FileExistsError` where there is one by that name, which
        isn't to be replaced."""

    def abort(self) -> None:
        """Throws away what has come."""


class Uploads(Protocol):
    """A service that objects are written to; `resumable`: what was brought there can be taken up by
    a later run, and not only by the one in which that was. Raises `OSError`."""

    resumable: bool

    def begin(self, path: Path, staged: Path, flights: int) -> Upload:
        """An object to be written, with so many parts on their way at a time; `staged` is a name
        that it may have until it is completed."""

    def take_up(self, path: Path, staged: Path, size: int, left: dict[str, Any]) -> Upload | None:
        """One whose parts another process has brought there, all of them; None where they
        aren't."""

    def write(self, path: Path, content: bytes, replace: bool) -> None:
        """Writes a small object. Raises `FileExistsError`."""

    def remove(self, path: Path) -> None:
        """Removes an object, or a directory, if it is there."""

    def begun(self, path: Path) -> Iterator[Begun]:
        """Uploads of the object at an address, and of those below it."""

    def give_up(self, begun: Begun) -> None:
        """Aborts one of these."""
