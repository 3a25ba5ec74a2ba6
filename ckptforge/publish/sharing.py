"""How several processes make one output, as an interface: what a `Publisher` lets others do while
one of them publishes.

    with publisher.opened(plan, memory, durable=True) as opened:   # a unit's plan, of one file
        run(plan, {file.path: opened.writer}, …)
        left = opened.settle()                                     # for `Publication.take_over`

and the small files that they leave for each other, `publisher.notes(directory)`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ckptforge.errors import OutputError
from ckptforge.planning.plan import Plan
from ckptforge.publish.directory import staged_file
from ckptforge.publish.file_system import FileSystem, sync
from ckptforge.publish.refusals import as_output_error
from ckptforge.publish.single_file import write_small
from ckptforge.publish.staging import open_target
from ckptforge.publish.tree import lies_at
from ckptforge.storage.store import Kind, Writer

PLAN = Path("parts", "plan")  # in the staging directory: what several parts carry out


class Opened(Protocol):
    """A file of an output in the making, as one of several processes writes it."""

    @property
    def writer(self) -> Writer:
        """The open file."""

    def settle(self) -> Any:
        """Makes durable what was written; returns what `Publication.take_over` must know of it, as
        JSON has it. Raises `OutputError`."""


class Notes(Protocol):
    """Small files in a directory beside an output in the making, each of which is read and written
    whole. Raises `OSError` and `OutputError`."""

    def names(self) -> list[str]:
        """What is there, in any order."""

    def read(self, name: str) -> bytes | None:
        """A file's contents, None where it isn't there."""

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, or replaces it."""

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""


class OpenedOnDisk(msgspec.Struct, frozen=True):
    """A file in the staging directory; `durable`: it is synced here, and not by who publishes."""

    writer: Writer
    path: Path
    durable: bool

    def settle(self) -> None:
        """See `Opened`."""
        if self.durable:
            sync(self.writer, self.path)


@contextmanager
def opened_on_disk(
    disk: FileSystem, plan: Plan, *, durable: bool, made: bool
) -> Iterator[OpenedOnDisk]:
    """The one file of a plan in the staging directory, which must be there if it was `made` before.
    Raises `OutputError`."""
    (file,) = plan.files
    path = staged_file(plan, file.path)
    with as_output_error(plan.output, f"can't be written in {path}"):
        if made and not lies_at(disk, path, Kind.FILE):
            raise OutputError(
                f"{path}: isn't there on this machine: the directory of the output must be shared "
                "by all workers, under the same path."
            )
        writer = open_target(disk, path, file)
    try:
        yield OpenedOnDisk(writer, path, durable)
    finally:
        with suppress(OSError):
            writer.close()


class NotesOnDisk:
    """Notes in a directory of a file system."""

    def __init__(self, disk: FileSystem, directory: Path) -> None:
        self._disk, self._directory = disk, directory

    def names(self) -> list[str]:
        """See `Notes`."""
        return self._disk.names(self._directory)

    def read(self, name: str) -> bytes | None:
        """See `Notes`."""
        try:
            reader = self._disk.open(self._directory / name)
        except FileNotFoundError:
            return None
        if reader is None:
            return None
        try:
            buffer = bytearray(reader.status().size)
            return bytes(buffer[: reader.read_into(0, memoryview(buffer))])
        finally:
            reader.close()

    def write(self, name: str, content: bytes) -> None:
        """See `Notes`."""
        write_small(self._disk, self._directory / name, content)

    def write_once(self, name: str, content: bytes) -> bool:
        """Writes a file, durably, that isn't there yet; False where another was before. It is made
        under another name and linked, which is one step on NFS, too."""
        path = self._directory / name
        temporary = self._directory / f"{name}.{secrets.token_hex(8)}.tmp"
        try:
            write_small(self._disk, temporary, content)
            try:
                self._disk.link(temporary, path)
            except FileExistsError:
                return False
            self._disk.sync_directory(self._directory)
            return True
        finally:
            with suppress(OSError):
                self._disk.unlink(temporary)

    def remove(self, name: str) -> None:
        """See `Notes`."""
        with suppress(FileNotFoundError):
            self._disk.unlink(self._directory / name)
