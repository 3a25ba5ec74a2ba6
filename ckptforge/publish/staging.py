"""An output in the making, in a directory beside it that the run has locked, until it is put in its
place whole: how a file system publishes."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptforge.errors import CkptforgeError, InputNotFoundError, OutputError, ReadError
from ckptforge.formats.layout import OutputFile
from ckptforge.planning.plan import Plan
from ckptforge.publish import journal as journals
from ckptforge.publish.directory import (
    empty_but_lock,
    empty_staging,
    names_of,
    staged_file,
    staging_path,
)
from ckptforge.publish.earlier import Request, journal_to_resume
from ckptforge.publish.file_system import FileSystem, LockableWriter, sync
from ckptforge.publish.journal import Journal
from ckptforge.publish.kept import kept_tensors
from ckptforge.publish.lock import is_same, lock_directory, unlock
from ckptforge.publish.refusals import as_output_error, check_output
from ckptforge.publish.replace import place_directory, place_files, restore_old
from ckptforge.publish.single_file import write_small
from ckptforge.publish.tree import lies_at, make_directories, names_in, walk
from ckptforge.run.budget import Budget
from ckptforge.run.schedule import Finished
from ckptforge.spelling import command, flag
from ckptforge.storage.files import write_exactly
from ckptforge.storage.mounts import absolute
from ckptforge.storage.store import Kind, Status
from ckptforge.values import Place
from ckptforge.wording import add_note, counted

_SPARE_FILES = 64


@dataclass
class Staging:
    """An output in the making: an open file for each final path, the small files to be written with
    them, and the journal. `begun`: what lies in the directory is this run's; before, it is
    another's and not to be touched."""

    disk: FileSystem
    plan: Plan
    directory: Path
    writers: dict[Path, LockableWriter] = field(default_factory=dict)
    small_files: dict[str, bytes] = field(default_factory=dict)
    journal: Journal | None = None
    begun: bool = False

    @property
    def out(self) -> Path:
        """Where the files are made."""
        return self.directory / "out"

    @property
    def disk_used(self) -> int:
        """Bytes of disk that the files take up already. Raises `OutputError`."""
        return sum(found.disk_bytes for found in self._statuses().values())

    @property
    def mtimes(self) -> dict[Path, int]:
        """When the files were written last. Raises `OutputError`."""
        return {path: found.mtime_ns for path, found in self._statuses().items()}

    def _statuses(self) -> dict[Path, Status]:
        with as_output_error(self.directory, "can't be read"):
            return {path: writer.status() for path, writer in self.writers.items()}

    def kept(self, budget: Budget) -> Mapping[Place, Finished]:
        """See `kept_tensors`."""
        known = self.journal.tensors if self.journal is not None else {}
        return kept_tensors(self.plan, known, self.writers, budget)

    def take_over(self, file: OutputFile, left: Any) -> bool:
        """What another process wrote is in the file that is open here."""
        return True

    def sync(self) -> None:
        """Makes the files durable. Raises `OutputError`."""
        for path, writer in self.writers.items():
            sync(writer, path)


@contextmanager
def staged(disk: FileSystem, plan: Plan, request: Request) -> Iterator[Staging]:
    """Opens a plan's files in the staging directory of its output; on a clean exit everything is
    synced and put in place.

    When the run stops on the way, what it made is kept for `resume` if its journal has something to
    go on from, and the exception gets a note that says so; otherwise all is removed, with the
    directories that were made for it. Raises `OutputError` when another run holds the directory,
    when one left work that isn't asked to be resumed, and when what it left is of other inputs,
    another command or another version.
    """
    output = plan.output
    allow_open_files(len(plan.files) + len(plan.sources) + _SPARE_FILES)
    parents = make_parents(disk, output)
    staging = Staging(disk, plan, staging_path(output), small_files=dict(plan.small_files))
    lock: LockableWriter | None = None
    placed = False
    try:
        lock = lock_directory(disk, staging.directory, output)
        with as_output_error(output, f"can't be written in {staging.directory}"):
            _begin(staging, plan, request)
            _open_files(staging, plan)
        yield staging
        with as_output_error(output, "can't be put in place"):
            _put_in_place(staging, plan, request)
        placed = True
        with as_output_error(output, "is in place, but its directory can't be synced to disk"):
            disk.sync_directory(absolute(output).parent)
        with suppress(OSError, OutputError):  # `clean` finds the rest
            empty_staging(disk, staging.directory)
    except BaseException as error:
        placed = placed or _is_placed(staging)
        locked = lock is not None and is_same(disk, lock, staging.directory / "lock")
        kept = locked and _worth_keeping(staging, error)
        for note in _notes(staging, plan, error, placed, kept):
            add_note(error, note)
        with suppress(OSError, OutputError):
            if locked and not placed:
                _give_up(staging, output, kept)
        raise
    finally:
        _close(staging)
        if lock is not None:
            unlock(disk, lock, staging.directory)
        for parent in reversed(parents):
            with suppress(OSError):  # those that hold something stay
                disk.remove_directory(parent)


def _notes(
    staging: Staging, plan: Plan, error: BaseException, placed: bool, kept: bool
) -> Iterator[str]:
    """What a user needs to know of a run that stopped."""
    output, journal = plan.output, staging.journal
    if placed:
        yield (
            f"{output} is in place and whole; {command('clean', output.parent)} removes the rest."
        )
        return
    if not isinstance(error, CkptforgeError):
        yield "No output was created."
    if kept and journal is not None:
        are = "is" if len(journal.tensors) == 1 else "are"
        yield (
            f"{len(journal.tensors)} of {counted(plan.tensor_count, 'tensor')} {are} finished and "
            f"kept in {staging.directory}: the same command with {flag('resume')} continues from "
            f"there, {command('clean', output.parent)} removes them."
        )


def _give_up(staging: Staging, output: Path, kept: bool) -> None:
    """Puts back what was moved away, and removes what is this run's and isn't `kept`."""
    if staging.begun:
        restore_old(staging.disk, staging.directory, output)
    if not kept and (staging.begun or names_of(staging.disk, staging.directory) == {"lock"}):
        _close(staging)
        empty_staging(staging.disk, staging.directory)


def _close(staging: Staging) -> None:
    """Closes the files and the journal. Errors say nothing that syncing hasn't said."""
    while staging.writers:
        _, writer = staging.writers.popitem()
        with suppress(OSError):
            writer.close()
    if staging.journal is not None:
        with suppress(OSError):
            staging.journal.close()
        staging.journal = None


def _is_placed(staging: Staging) -> bool:
    """Whether the files have their final names."""
    return bool(staging.writers) and all(
        is_same(staging.disk, writer, path) for path, writer in staging.writers.items()
    )


def _worth_keeping(staging: Staging, error: BaseException) -> bool:
    """Whether a run can be gone on with: something is finished, and the input isn't bad."""
    journal = staging.journal if staging.begun else None
    if journal is None or not lies_at(staging.disk, journal.path):
        return False
    if journal.consumed:
        return True  # nothing else has what was made of them
    stopped = isinstance(error, OutputError | ReadError | InputNotFoundError) or not isinstance(
        error, CkptforgeError
    )
    return stopped and bool(journal.tensors or journal.publishing is not None)


def _begin(staging: Staging, plan: Plan, request: Request) -> None:
    """Gets the journal to go on with, or removes what an earlier run left and begins one."""
    disk, directory = staging.disk, staging.directory
    resumed = journal_to_resume(disk, directory, plan, request)
    staging.journal = resumed
    restore_old(disk, directory, plan.output)
    staging.begun = True
    if resumed is not None:
        resumed.publishing = None
        return
    empty_but_lock(disk, directory)
    if request.journaled:
        path = directory / "journal"
        staging.journal = journals.begin(disk, path, journals.head_of(plan, request.command))
        disk.sync_directory(absolute(directory).parent)


def _open_files(staging: Staging, plan: Plan) -> None:
    disk, out = staging.disk, staging.out
    if lies_at(disk, out, Kind.LINK):
        raise OutputError(f"{out}: is a symbolic link, which no run of ckptforge made; remove it.")
    make_directories(disk, out)
    planned = {plan.name_of(file.path) for file in plan.files}
    for name in names_in(disk, out):
        if name not in planned:  # of an earlier try to put it in place
            disk.unlink(out / name)
    for file in plan.files:
        staging.writers[file.path] = open_target(disk, staged_file(plan, file.path), file)


def open_target(disk: FileSystem, path: Path, file: OutputFile) -> LockableWriter:
    """Opens a file to be written at a path, as large as it will be, with all that isn't tensors in
    it. Several may do that to the same. Raises `OSError`, `OutputError`."""
    make_directories(disk, path.parent)
    if lies_at(disk, path, Kind.FILE):
        # it may have got the mode of what it was to replace
        disk.set_mode(path, disk.status(path).mode | 0o600)
    writer = disk.create(path)
    writer.resize(file.size)
    for offset, literal in file.literals:
        write_exactly(writer, offset, literal, file.path)
    return writer


def _put_in_place(staging: Staging, plan: Plan, request: Request) -> None:
    disk = staging.disk
    try:
        check_output(disk, plan, request.overwrite)  # again: it may have appeared since
    except CkptforgeError as error:
        raise OutputError(str(error)) from error
    staging.sync()
    _refuse_replaced(staging, plan)
    for name, content in staging.small_files.items():
        write_small(disk, staging.out / name, content)
    for root, _ in walk(disk, staging.out):
        disk.sync_directory(root)
    disk.sync_directory(staging.directory)
    if staging.journal is not None:
        staging.journal.add_publishing(disk.status(staging.out).number[1])
    _refuse_replaced(staging, plan)
    if plan.is_directory:
        place_directory(disk, staging.directory, plan.output)
    else:
        place_files(disk, staging.out, plan.output, request.overwrite)


def _refuse_replaced(staging: Staging, plan: Plan) -> None:
    """Raises `OutputError` where the files to be placed aren't those that were written."""
    for path, writer in staging.writers.items():
        name = staged_file(plan, path)
        if not is_same(staging.disk, writer, name):
            raise OutputError(
                f"{name}: was removed or replaced while it was written; no output was created."
            )


def make_parents(disk: FileSystem, output: Path) -> list[Path]:
    """Makes the directories above the output, durably; returns the new ones, highest first. Raises
    `OutputError`."""
    try:
        made = make_directories(disk, absolute(output).parent)
        for directory in made:
            disk.sync_directory(directory.parent)
    except OSError as error:
        raise OutputError(f"{output}: its directory can't be created: {error.strerror}.") from error
    return made


def allow_open_files(count: int) -> None:
    """Raises the process's soft limit of open files to `count` where it is lower. Raises
    `OutputError` where the system doesn't allow it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or count <= soft:
        return
    if hard != resource.RLIM_INFINITY and count > hard:
        raise OutputError(
            f"{counted(count, 'file')} must be open at a time, but the system allows {hard} "
            "(ulimit -Hn); raise that limit."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
