"""What an earlier run left where an output is to be made: gone on with, finished, or refused."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec

from ckptforge.errors import LeftError, OutputError
from ckptforge.planning.plan import Plan
from ckptforge.publish import journal as journals
from ckptforge.publish.directory import empty_staging, staging_path
from ckptforge.publish.file_system import FileSystem
from ckptforge.publish.journal import Journal
from ckptforge.publish.lock import lock_directory, unlock
from ckptforge.publish.refusals import as_output_error
from ckptforge.publish.replace import finish_files
from ckptforge.publish.tree import lies_at
from ckptforge.run.budget import DEFAULT_MEMORY
from ckptforge.spelling import command, flag
from ckptforge.storage.store import Kind
from ckptforge.wording import counted


class Request(msgspec.Struct, frozen=True):
    """What a user wants of an output; `journaled`: it can be resumed. `memory` are bytes for what
    is on its way. `several`: other processes make files of it."""

    overwrite: bool = False
    resume: bool = False
    journaled: bool = True
    command: str | None = None
    memory: int = DEFAULT_MEMORY
    several: bool = False


def journal_to_resume(
    disk: FileSystem, directory: Path, plan: Plan, request: Request
) -> Journal | None:
    """The journal of an earlier run that this one goes on with; None where it begins anew, and what
    lies there may be removed. Raises `LeftError` where the user has to say which.

    A run that stopped while its output was put in place is gone on with as any other: what it made
    is checked again.
    """
    path = directory / "journal"
    left = journals.reopen(disk, path)
    if left is None:
        if lies_at(disk, directory / "parts") and not request.overwrite:
            raise LeftError(
                f"{plan.output}: parts of a run lie in {directory}; finish them with "
                f"{command('finish', plan.output)}, start over with {flag('overwrite')}, or remove "
                f"them with {command('clean', plan.output)}."
            )
        # a journal is durable before there is anything else
        begun = lies_at(disk, path) and disk.status(path).size and lies_at(disk, directory / "out")
        if begun and not request.overwrite:
            raise LeftError(
                f"{plan.output}: what an earlier run left, in {directory}, can't be resumed: its "
                f"journal can't be read. Start over with {flag('overwrite')}, or remove it with "
                f"{command('clean')}."
            )
        return None
    resumed = False
    try:
        resumed = _is_to_resume(disk, left, plan, request)
    finally:
        if not resumed:
            left.close()
    return left if resumed else None


def _is_to_resume(disk: FileSystem, left: Journal, plan: Plan, request: Request) -> bool:
    directory = left.path.parent
    if not left.tensors and not left.consumed and left.publishing is None:
        return False
    if left.publishing is not None and _was_placed(disk, directory, plan, left.publishing):
        return False  # what lies here is the old one, if anything
    finished = f"{len(left.tensors)} of {counted(plan.tensor_count, 'tensor')} finished"
    where = f"with {finished}, in {directory}"
    if not request.resume:
        left.refuse_to_lose(plan.output)
        if request.overwrite:
            return False
        raise LeftError(
            f"{plan.output}: an earlier run stopped {where}; continue with {flag('resume')}, start "
            f"over with {flag('overwrite')}, or remove them with {command('clean')}."
        )
    if reason := journals.differences(left.head, journals.head_of(plan, request.command)):
        left.refuse_to_lose(plan.output, f"This can't go on with it: {reason}. ")
        raise LeftError(
            f"{plan.output}: what an earlier run left {where}, can't be resumed: {reason}. Start "
            f"over with {flag('overwrite')} and without {flag('resume')}, or remove it with "
            f"{command('clean')}."
        )
    return True


def _was_placed(disk: FileSystem, directory: Path, plan: Plan, inode: int) -> bool:
    """Whether an output that was being put in place got there."""
    if not lies_at(disk, directory / "out", follow=True):
        return True
    if not plan.is_directory or not lies_at(disk, plan.output, follow=True):
        return False
    return disk.status(plan.output).number[1] == inode


def is_complete(disk: FileSystem, directory: Path, journal: Journal) -> bool:
    """Whether a staging directory holds an output that only had to be put in place."""
    out = directory / "out"
    return lies_at(disk, out) and disk.status(out).number[1] == journal.publishing


def finish_placing(disk: FileSystem, plan: Plan, command: str | None) -> bool:
    """Puts the manifest of an output that is a file in its place, where a run of the same plan was
    stopped between the two; whether that was so. Raises `OutputError`."""
    output, directory = plan.output, staging_path(plan.output)
    with as_output_error(output, "can't be put in place"):
        if not lies_at(disk, directory / "journal", Kind.FILE, follow=True):
            return False
    lock = lock_directory(disk, directory, output)
    try:
        with as_output_error(output, "can't be put in place"):
            journal = journals.reopen(disk, directory / "journal")
            if journal is None:
                return False
            journal.close()
            if not is_complete(disk, directory, journal) or journals.differences(
                journal.head, journals.head_of(plan, command)
            ):
                return False
            if not finish_files(disk, directory / "out", output):
                return False
        with suppress(OSError, OutputError):
            empty_staging(disk, directory)
        return True
    finally:
        unlock(disk, lock, directory)
