"""A store of objects: what lies below an address looks like a directory."""

from __future__ import annotations

import errno
import logging
import os
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Generic, TypeVar

from ckptforge.remote.held import WINDOW, HeldObject
from ckptforge.remote.objects import Facts, Objects
from ckptforge.remote.parts import PARTS, ObjectMemory
from ckptforge.remote.patience import fetch_all, patiently
from ckptforge.storage.address import address_of
from ckptforge.storage.store import Kind, Status

_log = logging.getLogger(__name__)
_FRESH = 5.0  # seconds for which what was said of a name is believed
T = TypeVar("T")


class RemoteStore:
    """Objects as files that can be read."""

    def __init__(self, objects: Objects, parts: ObjectMemory = PARTS) -> None:
        self._objects, self._parts = objects, parts
        self._facts = _Fresh(self.facts_now)
        self._names = _Fresh(self.names_now)
        self._held: dict[tuple[str, Facts], HeldObject] = {}

    def status(self, path: Path, *, follow: bool = True) -> Status:
        """Of an object, or of a directory, where objects lie below. What was said within 5 s is
        believed."""
        path = self.real_path(path)
        if (facts := self._facts.of(path)) is not None:
            return _status(path, facts)
        if self._names.of(path):
            return Status(kind=Kind.DIRECTORY, size=0, mtime_ns=0, mode=0o755, number=_number(path))
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    def names(self, directory: Path) -> list[str]:
        """The next part of the names of what lies below."""
        directory = self.real_path(directory)
        if found := self._names.of(directory):
            return list(found)
        number = errno.ENOENT if self._facts.of(directory) is None else errno.ENOTDIR
        raise OSError(number, os.strerror(number), str(directory))

    def open(self, path: Path) -> RemoteReader | None:
        """The object as it is now; None for a directory. Nothing is fetched yet."""
        path = self.real_path(path)
        facts = self._facts.of(path)
        if facts is None:
            self.status(path)  # raises where nothing has the name
            return None
        held = self._held.get((str(path), facts))
        if held is None:
            held = HeldObject(
                facts.size,
                lambda start, into: fetch_all(self._objects, path, facts, start, into),
            )
            self._held[str(path), facts] = held
        return RemoteReader(self._parts, held, _status(path, facts), path)

    def lies_at(self, path: Path, *kinds: Kind) -> bool:
        """Whether something, of one of some `kinds`, lies at an address. Raises `OSError`."""
        try:
            found = self.status(path).kind
        except FileNotFoundError:
            return False
        return not kinds or found in kinds

    def facts_now(self, path: Path) -> Facts | None:
        """What is known of an object, asked for again; None where there is none."""
        return patiently(lambda: self._objects.facts(path), path)

    def names_now(self, directory: Path) -> list[str]:
        """What lies below an address, asked for again; nothing where nothing does."""
        return patiently(lambda: self._objects.names(directory), directory)

    def read_now(self, path: Path) -> bytes | None:
        """All of a small object, asked for again, of which nothing stays in memory; None where it
        isn't there."""
        facts = self.facts_now(path)
        if facts is None:
            return None
        content = bytearray(facts.size)
        fetch_all(self._objects, path, facts, 0, memoryview(content))
        return bytes(content)

    def forget(self) -> None:
        """Asks again what lies where, as something was written."""
        self._facts.forget()
        self._names.forget()

    def real_path(self, path: Path) -> Path:
        """The address without `.`, `..` and doubled slashes: there are no links."""
        return address_of(os.path.normpath(path)) or path


class _Fresh(Generic[T]):
    """Answers about addresses, each of which is believed for a while and then asked for again."""

    def __init__(self, ask: Callable[[Path], T]) -> None:
        self._ask = ask
        self._answers: dict[str, tuple[float, T]] = {}

    def of(self, path: Path) -> T:
        """What is said of an address. Raises what asking raises."""
        name, now = str(path), time.monotonic()
        known = self._answers.get(name)
        if known is None or now - known[0] > _FRESH:
            known = self._answers[name] = now, self._ask(path)
        return known[1]

    def forget(self) -> None:
        """Asks for all of them again."""
        self._answers.clear()


class RemoteReader:
    """An object as it was when it was opened; reading it when it was changed is an error."""

    def __init__(self, parts: ObjectMemory, held: HeldObject, status: Status, path: Path) -> None:
        self._parts, self._held, self._status, self._path = parts, held, status, path
        self._open = True
        held.readers += 1

    def status(self) -> Status:
        """As it was when it was opened."""
        return self._status

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """From memory, into which what isn't there yet is fetched; waits for that."""
        return self._parts.read_into(self._held, offset, buffer)

    def begin_read(self, offset: int, length: int) -> None:
        """Begins to fetch the first of these bytes."""
        self._parts.begin(self._held, offset, length)

    def drop_cached(self, offset: int, length: int) -> None:
        """The system holds nothing of it."""

    def expect(self, ranges: Sequence[tuple[int, int]] | None) -> None:
        """Of which it is known then what may leave memory."""
        self._parts.expect(self._held, ranges)

    def begin_only(self, offset: int, length: int) -> None:
        """Begins to fetch the first of these bytes, where there is room."""
        self._parts.begin_only(self._held, offset, length)

    def holding(self, offset: int, length: int) -> AbstractContextManager[None]:
        """See `ObjectMemory.holding`."""
        return self._parts.holding(self._held, offset, length)

    def digest(self, start: int, length: int) -> bytes | None:
        """Of whole windows of 8 MiB, the last of which may be shorter: what of one hasn't come yet
        is brought, and waited for."""
        if start % WINDOW or length != min(WINDOW, self._held.size - start):
            return None
        return self._parts.digest(self._held, start // WINDOW)

    def close(self) -> None:
        """What was brought stays: it may be wanted again."""
        if not self._open:
            return
        self._open = False
        self._held.readers -= 1
        if not self._held.readers:
            if (twice := self._held.fetched - self._held.size) > 0:
                _log.warning(
                    "%s: %s bytes were read twice: they had left memory", self._path, twice
                )
            self._held.close()


def _status(path: Path, facts: Facts) -> Status:
    return Status(
        kind=Kind.FILE,
        size=facts.size,
        mtime_ns=facts.mtime_ns,
        number=_number(path),
        disk_bytes=facts.size,
    )


def _number(path: Path) -> tuple[int, int]:
    """A number for a name: one of no file of this machine's."""
    text = str(path).encode()
    return -1, zlib.crc32(text) << 32 | zlib.adler32(text)
