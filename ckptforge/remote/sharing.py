"""How several processes make an output in a service of objects: each brings whole files there,
which another completes, and leaves small objects for the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from ckptforge.errors import OutputError
from ckptforge.formats.layout import OutputFile
from ckptforge.planning.plan import Plan
from ckptforge.publish.directory import staging_path
from ckptforge.publish.refusals import as_output_error
from ckptforge.publish.sharing import PLAN
from ckptforge.remote.ordered import OrderedWriter
from ckptforge.remote.progress import RUN
from ckptforge.remote.store import RemoteStore
from ckptforge.remote.turned import holding_turned
from ckptforge.remote.uploads import Upload, Uploads

_PART = 8 * 1024 * 1024
_MOST_PARTS = 9_000  # S3 takes 10,000


def begin_file(
    uploads: Uploads, plan: Plan, file: OutputFile, memory: int
) -> tuple[Upload, OrderedWriter]:
    """A file of a plan to be brought to a service, with a quarter of `memory` on its way."""
    staged = staging_path(plan.output) / plan.name_of(file.path)
    upload = uploads.begin(file.path, staged, max(1, memory // (4 * _PART)))
    part = _PART * max(1, -(-file.size // (_PART * _MOST_PARTS)))
    return upload, OrderedWriter(file, part, upload.put)


class OpenedObject(msgspec.Struct, frozen=True):
    """A file that one of several processes brings there."""

    plan: Plan
    writer: OrderedWriter
    upload: Upload
    store: RemoteStore
    resumable: bool

    def settle(self) -> Any:
        """See `Opened`."""
        with as_output_error(self.plan.output, "can't be written"):
            self.writer.sync()
            left = self.upload.settle()
            self.refuse_given_up()
        return left

    def refuse_given_up(self) -> None:
        """Raises `OutputError` where the output isn't being made any more, or not seen here."""
        directory = staging_path(self.plan.output)
        said = (directory / RUN, directory / PLAN)
        if self.resumable and all(self.store.facts_now(path) is None for path in said):
            raise OutputError(
                f"{directory / RUN}: isn't there: the run was given up, or this worker asks "
                "another service than the process that began it."
            )


@contextmanager
def opened_object(
    store: RemoteStore, uploads: Uploads, plan: Plan, memory: int
) -> Iterator[OpenedObject]:
    """The one file of a unit's plan; nothing of it stays where an error ends this. Raises
    `OutputError`."""
    (file,) = plan.files
    with as_output_error(file.path, "can't be written"):
        upload, writer = begin_file(uploads, plan, file, memory)
        opened = OpenedObject(plan, writer, upload, store, uploads.resumable)
        opened.refuse_given_up()
    try:
        with holding_turned(plan, memory):
            yield opened
    except BaseException:
        with suppress(OSError):
            upload.abort()
        raise


class NotesInService:
    """Notes in a directory of a service of objects."""

    def __init__(self, store: RemoteStore, uploads: Uploads, directory: Path) -> None:
        self._store, self._uploads, self._directory = store, uploads, directory

    def names(self) -> list[str]:
        """Asked for anew each time."""
        return self._store.names_now(self._directory)

    def read(self, name: str) -> bytes | None:
        """Asked for anew each time."""
        return self._store.read_now(self._directory / name)

    def write(self, name: str, content: bytes) -> None:
        """By one request."""
        self._uploads.write(self._directory / name, content, replace=True)

    def remove(self, name: str) -> None:
        """By one request, or one for each object below the name."""
        self._uploads.remove(self._directory / name)
