"""Where outputs lie while they are made: a directory beside the output, locked by the run that
writes there.

`.<output>.ckptforge/` holds `lock`, `journal`, `out/` with the files, and `old/` while a directory
is being replaced. A lock is the kernel's (flock), which a dead process doesn't keep.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ckptforge.checkpoints.unfinished import SUFFIX
from ckptforge.errors import (
    CkptforgeError,
    InputNotFoundError,
    LeftError,
    OutputError,
    ReadError,
    add_note,
    counted,
)
from ckptforge.planning.plan import Plan
from ckptforge.publish import journal as journals
from ckptforge.publish.journal import Journal
from ckptforge.publish.lock import is_same, lock_directory, names_of, unlock
from ckptforge.publish.refusals import check_output, said
from ckptforge.publish.replace import (
    finish_files,
    names_in,
    place_directory,
    place_files,
    refuse_mounts,
    remove_tree,
    restore_old,
    sync_directory,
)
from ckptforge.publish.single_file import sync, write_small
from ckptforge.spelling import command, flag
from ckptforge.storage.files import write_exactly
from ckptforge.storage.local import LocalWriter


def staging_path(output: Path) -> Path:
    """The directory in which an output is made."""
    return output.parent / f".{output.name}{SUFFIX}"


def output_of(directory: Path) -> Path:
    """The output that is made in a staging directory."""
    return directory.parent / directory.name[1 : -len(SUFFIX)]


class Request(msgspec.Struct, frozen=True):
    """What a user wants of a staging directory. `journaled`: keep a journal, without which nothing
    can be resumed."""

    overwrite: bool = False
    resume: bool = False
    journaled: bool = True
    command: str | None = None


@dataclass
class Staging:
    """Outputs in the making: an open file for each final path, the small files to be written
    with them, and the journal. `begun`: what lies in the directory is this run's; before, it is
    another's and not to be touched."""

    directory: Path
    descriptors: dict[Path, LocalWriter] = field(default_factory=dict)
    small_files: dict[str, bytes] = field(default_factory=dict)
    journal: Journal | None = None
    begun: bool = False

    @property
    def out(self) -> Path:
        return self.directory / "out"

    @property
    def held(self) -> int:
        """Bytes of disk that the files take up already."""
        return sum(os.fstat(file.fd).st_blocks * 512 for file in self.descriptors.values())

    def sync(self) -> None:
        """Brings the files to the disk. Raises `OutputError`."""
        for path, writer in self.descriptors.items():
            sync(writer, path)


@contextmanager
def staged(plan: Plan, request: Request) -> Iterator[Staging]:
    """Opens a plan's files in the staging directory of its output; on a clean exit everything is
    synced and put in place.

    When the run stops on the way, what it made is kept for `resume` if its journal has something to
    go on from, and the exception gets a note that says so; otherwise all is removed, with the
    directories that were made for it. Raises `OutputError` when another run holds the directory,
    when one left work that isn't asked to be resumed, and when what it left is of other inputs,
    another command or another version.
    """
    output = plan.output
    _allow_open_files(len(plan.files) + len(plan.sources) + 64)
    parents = _make_parents(output)
    staging = Staging(staging_path(output), small_files=dict(plan.small_files))
    lock: int | None = None
    placed = False
    try:
        lock = lock_directory(staging.directory, output)
        with said(plan.output, f"can't be written in {staging.directory}"):
            _take_over(staging, plan, request)
            _open_files(staging, plan)
        yield staging
        with said(plan.output, "can't be put in place"):
            _put_in_place(staging, plan, request)
        placed = True
        with said(plan.output, "is in place, but its directory can't be synced to disk"):
            sync_directory(plan.output.absolute().parent)
        with suppress(OSError, OutputError):  # `clean` finds the rest
            empty_staging(staging.directory)
    except BaseException as error:
        placed = placed or _is_placed(staging)
        held = lock is not None and is_same(lock, staging.directory / "lock")
        kept = held and _worth_keeping(staging, error)
        for note in _notes(staging, plan, error, placed, kept):
            add_note(error, note)
        with suppress(OSError, OutputError):
            if held and not placed:
                _give_up(staging, output, kept)
        raise
    finally:
        _close(staging)
        if lock is not None:
            unlock(lock, staging.directory)
        for parent in reversed(parents):
            with suppress(OSError):  # those that hold something stay
                parent.rmdir()


def _notes(
    staging: Staging, plan: Plan, error: BaseException, placed: bool, kept: bool
) -> Iterator[str]:
    """What a user needs to know of a run that stopped."""
    output, journal = plan.output, staging.journal
    if placed:
        yield (
            f"{output} is in place and whole; {command('clean', output.parent)} removes what is "
            "left of the run."
        )
        return
    if not isinstance(error, CkptforgeError):
        yield "No output was created."
    if kept and journal is not None and journal.path.exists():
        are = "is" if len(journal.tensors) == 1 else "are"
        yield (
            f"{len(journal.tensors)} of {counted(plan.tensor_count, 'tensor')} {are} finished and "
            f"kept in {staging.directory}: "
            f"the same command with {flag('resume')} continues from there, "
            f"{command('clean', output.parent)} removes them."
        )


def _give_up(staging: Staging, output: Path, kept: bool) -> None:
    """Puts back what was moved away, and removes what isn't `kept`: nothing that this run hasn't
    taken over, but an empty directory."""
    if staging.begun:
        restore_old(staging.directory, output)
    if not kept and (staging.begun or names_of(staging.directory) == {"lock"}):
        _close(staging)
        empty_staging(staging.directory)


def _close(staging: Staging) -> None:
    """Closes the files and the journal. Errors say nothing that syncing hasn't said."""
    while staging.descriptors:
        _, writer = staging.descriptors.popitem()
        with suppress(OSError):
            writer.close()
    if staging.journal is not None:
        with suppress(OSError):
            staging.journal.close()
        staging.journal = None


def _is_placed(staging: Staging) -> bool:
    """Whether the files have their final names."""
    try:
        return bool(staging.descriptors) and all(
            os.path.samestat(os.fstat(writer.fd), os.stat(path))
            for path, writer in staging.descriptors.items()
        )
    except OSError:
        return False


def _worth_keeping(staging: Staging, error: BaseException) -> bool:
    """Whether a run that stopped so can be gone on with: something is finished, and it isn't the
    input or the cast that is bad."""
    journal = staging.journal if staging.begun else None
    stopped = isinstance(error, OutputError | ReadError | InputNotFoundError) or not isinstance(
        error, CkptforgeError
    )
    return (
        stopped and journal is not None and bool(journal.tensors or journal.publishing is not None)
    )


def _take_over(staging: Staging, plan: Plan, request: Request) -> None:
    """Gets the journal to continue with, or a new one; what an earlier run left and isn't continued
    is removed.

    A run that stopped while its output was put in place is gone on with as any other: what it made
    is checked again.
    """
    path = staging.directory / "journal"
    left = journals.reopen(path)
    if left is None and path.exists() and path.stat().st_size and not request.overwrite:
        raise LeftError(
            f"{plan.output}: what an earlier run left, in {staging.directory}, can't be resumed: "
            "its journal can't be read. "
            f"Start over with {flag('overwrite')}, or remove it with {command('clean')}."
        )
    if (
        left is not None
        and left.publishing is not None
        and _was_placed(staging, plan, left.publishing)
    ):
        left.close()  # what lies here is the old one, if anything
        left = None
    try:
        if left is not None and (left.tensors or left.publishing is not None):
            where = (
                f"with {len(left.tensors)} of {counted(plan.tensor_count, 'tensor')} "
                "finished, "
                f"in {staging.directory}"
            )
            if request.resume:
                if reason := journals.differences(left, journals.head_of(plan, request.command)):
                    raise LeftError(
                        f"{plan.output}: what an earlier run left {where}, can't be resumed: "
                        f"{reason}. "
                        f"Start over with {flag('overwrite')} and without {flag('resume')}, or "
                        f"remove it with {command('clean')}."
                    )
                restore_old(staging.directory, plan.output)
                left.publishing = None
                staging.journal, staging.begun = left, True
                return
            if not request.overwrite:
                raise LeftError(
                    f"{plan.output}: an earlier run stopped {where}; continue with "
                    f"{flag('resume')}, "
                    f"start over with {flag('overwrite')}, or remove them "
                    f"with {command('clean')}."
                )
    except BaseException:
        if left is not None:
            left.close()
        raise
    if left is not None:
        left.close()
    restore_old(staging.directory, plan.output)
    staging.begun = True
    _empty(staging.directory)
    if request.journaled:
        staging.journal = journals.begin(staging.directory / "journal", plan, request.command)


def _was_placed(staging: Staging, plan: Plan, inode: int) -> bool:
    """Whether the output of a run that began to put it in place got there: its directory is gone,
    or has the final name."""
    if not staging.out.exists():
        return True
    return plan.is_directory and plan.output.exists() and plan.output.stat().st_ino == inode


def is_complete(directory: Path, journal: Journal) -> bool:
    """Whether a staging directory holds an output that only had to be put in place."""
    try:
        return (directory / "out").stat().st_ino == journal.publishing
    except FileNotFoundError:
        return False


def finish_placing(plan: Plan, command: str | None) -> bool:
    """Puts the manifest of an output that is a file in its place, where a run of the same plan was
    stopped between the two; whether that was so. Raises `OutputError`."""
    output = plan.output
    directory = staging_path(output)
    if not os.path.isfile(directory / "journal"):
        return False
    lock = lock_directory(directory, output)
    try:
        with said(output, "can't be put in place"):
            journal = journals.reopen(directory / "journal")
            if journal is None:
                return False
            journal.close()
            if not is_complete(directory, journal) or journals.differences(
                journal, journals.head_of(plan, command)
            ):
                return False
            if not finish_files(directory / "out", output):
                return False
            sync_directory(output.absolute().parent)
        with suppress(OSError, OutputError):
            empty_staging(directory)
        return True
    finally:
        unlock(lock, directory)


def empty_staging(directory: Path) -> None:
    """Empties a staging directory, what is locked by last, so that a run that is killed here leaves
    one that can be recognised; `unlock` removes it."""
    _empty(directory)
    (directory / "lock").unlink(missing_ok=True)


def _empty(directory: Path) -> None:
    """Removes all but the lock. Raises `OutputError` where something is mounted in it, or it holds
    what a run moved away."""
    refuse_mounts(directory)
    if (directory / "old").is_dir() and (directory / "out").exists():
        raise OutputError(
            f"{directory / 'old'}: holds the old output of an interrupted run; "
            "restore it or move it elsewhere."
        )
    for path in (directory / name for name in names_of(directory) - {"lock"}):
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)


def _open_files(staging: Staging, plan: Plan) -> None:
    if staging.out.is_symlink():
        raise OutputError(
            f"{staging.out}: is a symbolic link, which no run of ckptforge made; remove it."
        )
    staging.out.mkdir(exist_ok=True)
    planned = {plan.name_of(file.path) for file in plan.files}
    for name in names_in(staging.out):
        if name not in planned:  # of an earlier try to put it in place
            (staging.out / name).unlink()
    for file in plan.files:
        path = staging.out / (
            file.path.relative_to(plan.output) if plan.is_directory else plan.output.name
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and not path.is_symlink():
            # it may have got the mode of what it was to replace
            path.chmod(path.stat().st_mode | 0o600)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        staging.descriptors[file.path] = writer = LocalWriter(fd)
        os.ftruncate(fd, file.size)
        for offset, literal in file.literals:
            write_exactly(writer, offset, literal, file.path)


def _put_in_place(staging: Staging, plan: Plan, request: Request) -> None:
    try:
        check_output(plan, request.overwrite)  # again: it may have appeared since
    except CkptforgeError as error:
        raise OutputError(str(error)) from error
    staging.sync()
    _refuse_replaced(staging, plan)
    for name, content in staging.small_files.items():
        write_small(staging.out / name, content)
    for root, _, _ in os.walk(staging.out):
        sync_directory(Path(root))
    inode = staging.out.stat().st_ino
    if staging.journal is not None:
        staging.journal.add_publishing(inode)
    _refuse_replaced(staging, plan)
    if plan.is_directory:
        place_directory(staging.directory, plan.output)
    else:
        place_files(staging.out, plan.output, request.overwrite)


def _refuse_replaced(staging: Staging, plan: Plan) -> None:
    """Raises `OutputError` where what lies under the names that are about to be placed isn't what
    was written."""
    for path, writer in staging.descriptors.items():
        name = staging.out / (
            path.relative_to(plan.output) if plan.is_directory else plan.output.name
        )
        if not is_same(writer.fd, name):
            raise OutputError(
                f"{name}: was removed or replaced while it was written; no output was created."
            )


def _allow_open_files(count: int) -> None:
    """Raises the process's soft limit of open files where a job with many ranks needs more. Raises
    `OutputError`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or count <= soft:
        return
    if hard != resource.RLIM_INFINITY and count > hard:
        raise OutputError(
            f"{counted(count, 'file')} must be open at a time, but the system allows "
            f"{hard} (ulimit -Hn); raise that limit."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _make_parents(output: Path) -> list[Path]:
    """Makes the directories above the output; returns those that were missing, the highest
    first."""
    missing = []
    parent = output.absolute().parent
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output}: its directory can't be created: {error.strerror}.") from error
    return missing[::-1]
