"""How an output appears whole or not at all, as an interface. A store's kind decides the way:

    publisher = publisher_of(plan.output)
    publisher.check(plan, overwrite)                    # refuses before any work
    with publisher.publication(plan, request) as out:   # goes on with what an earlier run left
        run(plan, out.writers, …)                       # any worker writes any part of any file
        out.small_files["manifest.json"] = …
                                                        # here everything appears, or nothing

A file system does it by a directory beside the output and renames (`staging.py`). A store without
renames has a publisher of its own (`PublishingStore`): that of objects uploads parts, finishes them
at the end and writes the manifest last (`remote/publishing.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ckptforge.foreign.paths import exists
from ckptforge.formats.layout import OutputFile
from ckptforge.planning.plan import Plan
from ckptforge.publish.directory import staging_path
from ckptforge.publish.earlier import Request, finish_placing
from ckptforge.publish.file_system import FileSystem, file_system_of
from ckptforge.publish.refusals import check_output, check_room
from ckptforge.publish.sharing import Notes, NotesOnDisk, Opened, opened_on_disk
from ckptforge.publish.staging import Staging, staged
from ckptforge.run.budget import Budget
from ckptforge.run.schedule import Finished, Key, Ledger
from ckptforge.storage.mounts import store_of
from ckptforge.storage.store import PublishingStore, Writer
from ckptforge.values import Place

if TYPE_CHECKING:
    from ckptforge.publish.clean import Left


class RunLedger(Ledger, Protocol):
    """What is known of a run that another can go on with, and what it was made from."""

    @property
    def tensors(self) -> dict[Key, Finished]:
        """The tensors that are finished."""

    @property
    def head(self) -> Mapping[str, Any]:
        """See `journal.head_of`."""


class Publication(Protocol):
    """An output in the making: an open file for each path of the plan, small files that are written
    with them, and the journal by which another run can go on, if there is one."""

    small_files: dict[str, bytes]

    @property
    def writers(self) -> Mapping[Path, Writer]:
        """An open file for each path."""

    @property
    def journal(self) -> RunLedger | None:
        """By which another run can go on."""

    @property
    def disk_used(self) -> int:
        """Bytes that the files take up already. Raises `OutputError`."""

    @property
    def mtimes(self) -> dict[Path, int]:
        """When the files were written last. Raises `OutputError`."""

    def kept(self, budget: Budget) -> Mapping[Place, Finished]:
        """The tensors that an earlier run finished and that are there still."""

    def take_over(self, file: OutputFile, left: Any) -> bool:
        """Takes a file, or a part of one, that another process has written, with what its
        `Opened.settle` returned; False where it isn't seen here. Raises `OutputError`."""

    def sync(self) -> None:
        """Makes the files durable. Raises `OutputError`."""


class Publisher(Protocol):
    """One kind of store's way of publishing. `whole_files`: a file has one writer, which writes it
    from front to back."""

    whole_files: bool

    def check(self, plan: Plan, overwrite: bool) -> None:
        """Refuses, before any work, what can't or mustn't be written. Raises `OutputError`."""

    def check_room(self, plan: Plan, disk_used: int = 0) -> None:
        """Refuses an output for which there is no room. Raises `OutputError`."""

    def publication(self, plan: Plan, request: Request) -> AbstractContextManager[Publication]:
        """The output in the making, which is put in its place at the end, or not at all."""

    def finish(self, plan: Plan, command: str | None) -> bool:
        """Does what is left to do where an earlier run of the same plan was stopped after all was
        written and its files had their names; whether that was so. Raises `OutputError`."""

    def remains(self, output: Path) -> Path | None:
        """What couldn't be removed after an output was put in its place."""

    def opened(
        self, plan: Plan, memory: int, *, durable: bool, made: bool
    ) -> AbstractContextManager[Opened]:
        """The one file of a unit's plan, for a process that makes that alone, with `memory` bytes
        for what is on its way. `durable`: what it writes is to be, as another machine publishes;
        `made`: the file must be there already, where files are made before. Raises
        `OutputError`."""

    def notes(self, directory: Path) -> Notes:
        """What several processes leave for each other in a directory beside an output."""

    def clean(self, path: Path, dry_run: bool) -> list[Left]:
        """Removes what runs left of outputs in a directory, and of the directory itself, unless it
        is a dry run; what can't be removed is reported. Raises `InputNotFoundError`."""


class ByRename:
    """A file system's way: made in a directory beside it, renamed at the end."""

    whole_files = False

    def __init__(self, disk: FileSystem) -> None:
        self.disk = disk

    def check(self, plan: Plan, overwrite: bool) -> None:
        """See `check_output`."""
        check_output(self.disk, plan, overwrite)

    def check_room(self, plan: Plan, disk_used: int = 0) -> None:
        """See `refusals.check_room`."""
        check_room(self.disk, plan, disk_used)

    def publication(self, plan: Plan, request: Request) -> AbstractContextManager[Staging]:
        """See `staged`."""
        return staged(self.disk, plan, request)

    def finish(self, plan: Plan, command: str | None) -> bool:
        """See `finish_placing`."""
        return finish_placing(self.disk, plan, command)

    def remains(self, output: Path) -> Path | None:
        """The staging directory, if it is still there."""
        return left if exists(left := staging_path(output)) else None

    def opened(
        self, plan: Plan, memory: int, *, durable: bool, made: bool
    ) -> AbstractContextManager[Opened]:
        """See `opened_on_disk`."""
        return opened_on_disk(self.disk, plan, durable=durable, made=made)

    def notes(self, directory: Path) -> Notes:
        """See `NotesOnDisk`."""
        return NotesOnDisk(self.disk, directory)

    def clean(self, path: Path, dry_run: bool) -> list[Left]:
        """See `remove_left`."""
        from ckptforge.publish.clean import remove_left

        return remove_left(path, dry_run=dry_run)


def publisher_of(output: Path) -> Publisher:
    """The way in which an output is published where it is to lie. Raises `OutputError`."""
    store = store_of(output)
    own: Publisher | None = store.publisher() if isinstance(store, PublishingStore) else None
    return ByRename(file_system_of(output)) if own is None else own
