"""Putting finished outputs in their place: in one step where the system has one, and so that a step
that was cut off, by whatever, can be done again.

A step is made durable before the next where the two would be wrong in the other order: a file
system may bring the names of two files to the disk in any order.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ckptforge.checkpoints.manifest import manifest_path, read_manifest, written_names
from ckptforge.errors import OutputError
from ckptforge.publish.file_system import FileSystem
from ckptforge.publish.tree import lies_at, make_directories, names_in, remove, walk
from ckptforge.storage.mounts import absolute
from ckptforge.storage.store import Kind


def place_files(disk: FileSystem, out: Path, output: Path, overwrite: bool) -> None:
    """Moves a finished file and those that go with it beside it; the file itself first, so that its
    manifest is never without it. Raises `FileExistsError` for one that has appeared, unless it may
    be replaced."""
    parent = absolute(output).parent
    others = [name for name in disk.names(out) if name != output.name]
    if overwrite:
        # no manifest is better than one of other contents
        for name in others:
            remove(disk, output.parent / name)
        disk.sync_directory(parent)
    if overwrite or not _link(disk, out / output.name, output):
        keep_mode(disk, output, out / output.name)
        disk.rename(out / output.name, output)
    disk.sync_directory(parent)
    with suppress(FileNotFoundError):  # it was linked
        disk.unlink(out / output.name)
    for name in others:
        disk.rename(out / name, output.parent / name)


def _link(disk: FileSystem, path: Path, output: Path) -> bool:
    """Gives a file a name that nothing has; False on a file system without links."""
    try:
        disk.link(path, output)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def finish_files(disk: FileSystem, out: Path, output: Path) -> bool:
    """Puts the manifest of a file in its place where a run was stopped between the two, and makes
    that durable; False where that isn't so."""
    manifest = out / manifest_path(output, False).name
    if not lies_at(disk, output, Kind.FILE, follow=True):
        return False
    found = disk.status(output)
    if lies_at(disk, out / output.name, follow=True):
        if disk.status(out / output.name).number != found.number:
            return False
        disk.unlink(out / output.name)  # it was linked, and not yet unlinked
    if not lies_at(disk, manifest, Kind.FILE, follow=True):
        return False
    written = read_manifest(manifest)
    sizes, mtimes = {output.name: found.size}, {output.name: found.mtime_ns}
    if (written.sizes, written.mtimes) != (sizes, mtimes):
        return False
    for name in sorted(disk.names(out)):
        disk.rename(out / name, output.parent / name)
    disk.sync_directory(absolute(output).parent)
    return True


def refuse_mounts(disk: FileSystem, directory: Path) -> None:
    """Raises `OutputError` where something is mounted in what is replaced or removed."""
    if lies_at(disk, directory, follow=True) and (found := disk.mounts_below(directory)):
        raise OutputError(
            f"{directory}: something is mounted there, at {found[0]}, so that it is neither "
            "replaced nor removed; unmount it, or choose another."
        )


def place_directory(disk: FileSystem, staging: Path, output: Path) -> None:
    """Puts `staging/out` in the place of `output`. What lies in an existing one and isn't part of
    its checkpoint is kept, and so are the modes and owners of its directories."""
    out = staging / "out"
    refuse_mounts(disk, output)
    if not lies_at(disk, output, Kind.DIRECTORY, follow=True):
        disk.rename(out, output)
        return
    _take_along(disk, output, out)
    old = staging / "out"
    try:
        disk.exchange(out, output)
    except OSError:  # not on every file system
        old = staging / "old"
        try:
            disk.rename(output, old)
            disk.rename(out, output)
        except BaseException:
            restore_old(disk, staging, output)
            raise
    _take_along(disk, old, output)  # again: what has appeared meanwhile
    with suppress(OSError):
        for root, names in walk(disk, old):
            for name in (".", *names):
                keep_mode(disk, root / name, output / root.relative_to(old) / name)


def restore_old(disk: FileSystem, staging: Path, output: Path) -> None:
    """Puts an output back that was moved away to be replaced and wasn't, and makes that durable.
    Raises `OutputError` where something has taken its place."""
    old = staging / "old"
    if not lies_at(disk, old, Kind.DIRECTORY, follow=True) or not lies_at(disk, staging / "out"):
        return  # it was replaced
    try:
        if lies_at(disk, output):
            disk.remove_directory(output)
        disk.rename(old, output)
    except OSError as error:
        raise OutputError(
            f"{output}: a run was stopped while it replaced this, and something else has that name "
            f"now; what it was lies in {old}. Move one of them away."
        ) from error
    disk.sync_directory(absolute(output).parent)


def _take_along(disk: FileSystem, old: Path, new: Path) -> None:
    """Durably links, or copies, what isn't of the checkpoint in `old` into `new`."""
    ours = written_names(old)
    for name in names_in(disk, old):
        if name in ours or lies_at(disk, new / name):
            continue
        make_directories(disk, (new / name).parent)
        try:
            disk.link(old / name, new / name)
        except OSError:
            disk.copy(old / name, new / name)
            if (copy := disk.reopen(new / name)) is not None:
                copy.sync()
                copy.close()
    for root, _ in walk(disk, old):
        if not disk.names(root):
            make_directories(disk, new / root.relative_to(old))
    for root, _ in walk(disk, new):
        disk.sync_directory(root)


def keep_mode(disk: FileSystem, old: Path, new: Path) -> None:
    """Gives `new` the mode and the owner of what it replaces, where that is allowed."""
    with suppress(OSError):
        before, now = disk.status(old, follow=False), disk.status(new, follow=False)
        if before.kind is not now.kind or now.kind is Kind.LINK:
            return
        if before.owner != now.owner:
            with suppress(OSError):
                disk.set_owner(new, before.owner)
        mode = before.mode & (0o7777 if now.kind is Kind.DIRECTORY else 0o777)
        if mode != now.mode:
            disk.set_mode(new, mode)
