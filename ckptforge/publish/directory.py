"""The directory in which an output is made: `.<output>.ckptforge` beside it, with a `lock`, a
`journal`, `out` for the files, `old` while a directory is being replaced, and `parts` where several
processes make it (`machines/parts.py`), and `consumed` for what is left of sources that were
removed (`publish/consuming.py`)."""

from __future__ import annotations

from pathlib import Path

from ckptforge.checkpoints.unfinished import SUFFIX
from ckptforge.errors import OutputError
from ckptforge.planning.plan import Plan
from ckptforge.publish.file_system import FileSystem
from ckptforge.publish.replace import refuse_mounts
from ckptforge.publish.tree import lies_at, remove, remove_tree
from ckptforge.storage.store import Kind

PARTS = {"lock", "journal", "out", "old", "parts", "consumed"}


def staging_path(output: Path) -> Path:
    """The directory in which an output is made."""
    return output.parent / f".{output.name}{SUFFIX}"


def staged_file(plan: Plan, path: Path) -> Path:
    """Where the file that is to be `path` is made."""
    name = path.relative_to(plan.output) if plan.is_directory else plan.output.name
    return staging_path(plan.output) / "out" / name


def output_of(directory: Path) -> Path:
    """The output that is made in a staging directory."""
    return directory.parent / directory.name[1 : -len(SUFFIX)]


def names_of(disk: FileSystem, directory: Path) -> set[str]:
    """What lies in a staging directory, without NFS's names. Raises `OSError`."""
    return {name for name in disk.names(directory) if not name.startswith(".nfs")}


def empty_staging(disk: FileSystem, directory: Path) -> None:
    """Empties a staging directory, what is locked by last, so that a run that is killed here leaves
    one that can be recognised; `unlock` removes it."""
    empty_but_lock(disk, directory)
    remove(disk, directory / "lock")


def empty_but_lock(disk: FileSystem, directory: Path) -> None:
    """Removes all but the lock. Raises `OutputError` for mounts and an old output."""
    refuse_mounts(disk, directory)
    if lies_at(disk, directory / "old", Kind.DIRECTORY) and lies_at(disk, directory / "out"):
        raise OutputError(
            f"{directory / 'old'}: holds the old output of an interrupted run; restore or move it."
        )
    for name in names_of(disk, directory) - {"lock"}:
        path = directory / name
        if lies_at(disk, path, Kind.DIRECTORY):
            remove_tree(disk, path)
        else:
            remove(disk, path)
