"""What runs that were stopped left behind, and removing it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ckptforge.checkpoints.unfinished import SUFFIX
from ckptforge.errors import CkptforgeError, InputNotFoundError, OutputError
from ckptforge.foreign.paths import is_directory
from ckptforge.publish import journal as journals
from ckptforge.publish.directory import PARTS, empty_staging, names_of, output_of, staging_path
from ckptforge.publish.earlier import is_complete
from ckptforge.publish.file_system import FileSystem, file_system_of
from ckptforge.publish.lock import lock_directory, unlock
from ckptforge.publish.replace import finish_files, refuse_mounts, restore_old
from ckptforge.publish.single_file import temporary_of
from ckptforge.publish.tree import disk_bytes, lies_at
from ckptforge.storage.store import Kind


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


def remove_left(path: Path, *, dry_run: bool) -> list[Left]:
    """Removes what runs left of outputs in a directory, and of the directory itself, unless it is a
    dry run; what can't be removed is reported. Raises `InputNotFoundError`."""
    disk = file_system_of(path)
    own = staging_path(path) if path.name and path.name != ".." else None
    found = [own] if own is not None and _is_staging(disk, own) else []
    small: list[Path] = []
    if is_directory(path):
        try:
            entries = sorted(path / name for name in disk.names(path))
            found += [entry for entry in entries if _is_staging(disk, entry)]
            small = [
                entry
                for entry in entries
                if temporary_of(entry) is not None and lies_at(disk, entry, Kind.FILE)
            ]
        except OSError as error:
            raise InputNotFoundError(f"{path}: can't be listed: {error.strerror}.") from error
    elif not found:
        raise InputNotFoundError(f"{path}: no such directory.")
    return [
        *(_remove(disk, entry, dry_run) for entry in found),
        *(_remove_small(disk, entry, dry_run) for entry in small),
    ]


def _is_staging(disk: FileSystem, path: Path) -> bool:
    if not path.name.startswith(".") or not path.name.endswith(SUFFIX):
        return False
    try:
        return lies_at(disk, path, Kind.DIRECTORY) and names_of(disk, path) <= PARTS
    except OSError:  # another user's, or it is being removed
        return False


def _remove(disk: FileSystem, directory: Path, dry_run: bool) -> Left:
    output = output_of(directory)
    where = str(directory), str(output)
    try:
        lock = lock_directory(disk, directory, output)
    except OutputError as error:
        return Left(*where, 0, 0, str(error))
    try:
        journal = journals.reopen(disk, directory / "journal")
        finished = len(journal.tensors) if journal is not None else 0
        whole = journal is not None and is_complete(disk, directory, journal)
        if journal is not None:
            journal.close()
            journal.refuse_to_lose(output)
        complete = whole and not lies_at(disk, output, follow=True)
        left = Left(*where, finished, disk_bytes(disk, directory), None, complete)
        if not dry_run:
            refuse_mounts(disk, directory)
            restore_old(disk, directory, output)
            if whole:
                finish_files(disk, directory / "out", output)
            empty_staging(disk, directory)
        return left
    except OSError as error:
        which = f" ({error.filename})" if error.filename else ""
        why = f"{directory} can't be removed: {error.strerror}{which}."
        return Left(*where, 0, 0, why, failed=True)
    except CkptforgeError as error:
        return Left(*where, 0, 0, str(error), failed=True)
    finally:
        unlock(disk, lock, directory)


def _remove_small(disk: FileSystem, path: Path, dry_run: bool) -> Left:
    found = temporary_of(path)
    assert found is not None
    output, process = found
    where = str(path), str(output)
    if _lives(process):
        return Left(*where, 0, 0, f"{output}: process {process} may be writing it.")
    try:
        left = Left(*where, 0, disk.status(path, follow=False).disk_bytes)
        if not dry_run:
            disk.unlink(path)
        return left
    except OSError as error:
        return Left(*where, 0, 0, f"{path} can't be removed: {error.strerror}.", failed=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:  # another user's
        return True
    except (OSError, OverflowError):
        return False
    return True
