"""Removing what runs that were killed left behind."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckptforge.checkpoints.unfinished import SUFFIX
from ckptforge.errors import CkptforgeError, InputNotFoundError, OutputError, brief, counted
from ckptforge.publish import journal as journals
from ckptforge.publish.lock import PARTS, lock_directory, names_of, unlock
from ckptforge.publish.replace import finish_files, refuse_mounts, restore_old
from ckptforge.publish.single_file import temporary_of
from ckptforge.publish.staging import empty_staging, is_complete, output_of, staging_path
from ckptforge.verbs.options import Clean
from ckptforge.verbs.public import verb


@dataclass(frozen=True)
class Left:
    """What a run left: the `directory` (or small file) it is, the `output` it was for, tensors
    `finished`, and `bytes` of disk. `complete`: the output was whole and only had to be put in
    place. `busy` says why it was left alone, if it was; `failed`: not because a run may hold it."""

    directory: str
    output: str
    finished: int
    bytes: int
    busy: str | None = None
    complete: bool = False
    failed: bool = False


@dataclass(frozen=True, repr=False)
class Cleaned:
    """What `clean` found and, except for a dry run and what is busy, removed."""

    directory: str
    left: list[Left]
    dry_run: bool

    @property
    def bytes(self) -> int:
        return sum(left.bytes for left in self.left if left.busy is None)

    @property
    def ok(self) -> bool:
        """Whether all was removed but what living runs may hold."""
        return not any(left.failed for left in self.left)

    def __repr__(self) -> str:
        return (
            f"<Cleaned {brief(self.directory)}: {counted(len(self.left), 'output')} left by "
            f"runs, {self.bytes} bytes>"
        )

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self), "bytes": self.bytes}


@verb(Clean)
def clean(options: Clean) -> Cleaned:
    """Removes what interrupted or killed runs left of outputs in a directory, and of the directory
    itself. Returns a `Cleaned`.

    What a running process uses is left alone; what can't be removed is reported.

    Raises `InputNotFoundError` for a directory that isn't there.
    """
    path, dry_run = options.directory, options.dry_run
    own = staging_path(path) if path.name and path.name != ".." else None
    small: list[Path] = []
    found = [own] if own is not None and _is_staging(own) else []
    if os.path.isdir(path):
        try:
            entries = sorted(path.iterdir())
            found += [entry for entry in entries if _is_staging(entry)]
            small = [
                entry
                for entry in entries
                if temporary_of(entry) is not None and entry.is_file() and not entry.is_symlink()
            ]
        except OSError as error:
            raise InputNotFoundError(f"{path}: can't be listed: {error.strerror}.") from error
    elif not found:
        raise InputNotFoundError(f"{path}: no such directory.")
    return Cleaned(
        str(path),
        [_remove(entry, dry_run) for entry in found]
        + [_remove_small(entry, dry_run) for entry in small],
        dry_run,
    )


def _is_staging(path: Path) -> bool:
    name = path.name
    if not name.startswith(".") or not name.endswith(SUFFIX):
        return False
    try:
        return not path.is_symlink() and path.is_dir() and names_of(path) <= PARTS
    except OSError:  # another user's, or it is being removed
        return False


def _remove(directory: Path, dry_run: bool) -> Left:
    output = output_of(directory)
    try:
        lock = lock_directory(directory, output)
    except OutputError as error:
        return Left(str(directory), str(output), 0, 0, str(error))
    try:
        journal = journals.reopen(directory / "journal")
        finished = len(journal.tensors) if journal is not None else 0
        complete = journal is not None and is_complete(directory, journal) and not output.exists()
        if journal is not None:
            journal.close()
        left = Left(str(directory), str(output), finished, _disk_bytes(directory), None, complete)
        if not dry_run:
            refuse_mounts(directory)
            restore_old(directory, output)
            if journal is not None and is_complete(directory, journal):
                finish_files(directory / "out", output)
            empty_staging(directory)
        return left
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return Left(
            str(directory),
            str(output),
            0,
            0,
            f"{directory} can't be removed: {error.strerror}{where}.",
            failed=True,
        )
    except CkptforgeError as error:
        return Left(str(directory), str(output), 0, 0, str(error), failed=True)
    finally:
        unlock(lock, directory)


def _remove_small(path: Path, dry_run: bool) -> Left:
    found = temporary_of(path)
    assert found is not None
    output, process = found
    if _lives(process):
        return Left(str(path), str(output), 0, 0, f"{output}: process {process} may be writing it.")
    try:
        left = Left(str(path), str(output), 0, path.lstat().st_blocks * 512)
        if not dry_run:
            path.unlink()
        return left
    except OSError as error:
        return Left(
            str(path), str(output), 0, 0, f"{path} can't be removed: {error.strerror}.", failed=True
        )


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:  # another user's
        return True
    except (OSError, OverflowError):
        return False
    return True


def _disk_bytes(directory: Path) -> int:
    return sum(
        os.lstat(os.path.join(root, name)).st_blocks * 512
        for root, _, names in os.walk(directory)
        for name in names
    )
