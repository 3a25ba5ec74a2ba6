"""Putting finished outputs in their place: in one step where the system has one, and so that a step
that was cut off can be done again."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ckptforge.checkpoints.manifest import manifest_path, read_manifest, written_names
from ckptforge.errors import OutputError

# directories of CIFS, FUSE, 9p
_NO_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP}
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h


def place_files(out: Path, output: Path, overwrite: bool) -> None:
    """Moves a finished file and those that go with it beside it; the file itself first, so that its
    manifest is never without it. Raises `FileExistsError` for one that has appeared, unless it may
    be replaced."""
    others = [path for path in out.iterdir() if path.name != output.name]
    if overwrite:
        # no manifest is better than one of other contents
        _unlink(output.parent / path.name for path in others)
    if overwrite or not _link(out / output.name, output):
        keep_mode(output, out / output.name)
        os.replace(out / output.name, output)
    _unlink(output.parent / path.name for path in others)
    for path in others:
        os.replace(path, output.parent / path.name)


def _link(path: Path, output: Path) -> bool:
    """Gives a file a name that nothing has; False on a file system without links. Raises
    `FileExistsError`."""
    try:
        os.link(path, output)
    except FileExistsError:
        raise
    except OSError:
        return False
    path.unlink()
    return True


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def finish_files(out: Path, output: Path) -> bool:
    """Puts the manifest of a file in its place where a run was stopped between the two; False where
    that isn't so."""
    manifest = out / manifest_path(output, False).name
    if (
        output.is_file()
        and (out / output.name).exists()
        and os.path.samefile(out / output.name, output)
    ):
        (out / output.name).unlink()  # it was linked, and not yet unlinked
    if (out / output.name).exists() or not manifest.is_file() or not output.is_file():
        return False
    found, written = output.stat(), read_manifest(manifest)
    if (written.sizes, written.mtimes) != (
        {output.name: found.st_size},
        {output.name: found.st_mtime_ns},
    ):
        return False
    for path in sorted(out.iterdir()):
        os.replace(path, output.parent / path.name)
    return True


def mounts_under(directory: Path) -> list[str]:
    """Mount points in or below a directory, which must be neither moved nor emptied with it
    (proc(5), mountinfo)."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return [
            os.path.join(root, name)
            for root, names, _ in os.walk(directory)
            for name in names
            if os.path.ismount(os.path.join(root, name))
        ]
    base = os.path.realpath(directory)
    points = [
        re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split(" ")[4])
        for line in lines
    ]
    return [point for point in points if point == base or point.startswith(base.rstrip("/") + "/")]


def refuse_mounts(directory: Path) -> None:
    """Raises `OutputError` where another file system is mounted in a directory that is to be
    replaced or removed."""
    if directory.exists() and (found := mounts_under(directory)):
        raise OutputError(
            f"{directory}: something is mounted there, at {found[0]}, so that it is neither "
            "replaced nor removed; unmount it, or choose "
            "another."
        )


def place_directory(staging: Path, output: Path) -> None:
    """Puts `staging/out` in the place of `output`. What lies in an existing one and isn't part of
    its checkpoint is kept, and so are the modes and owners of its directories."""
    out = staging / "out"
    refuse_mounts(output)
    if not output.is_dir():
        os.rename(out, output)
        return
    _take_along(output, out)
    old = staging / "out"
    if not _exchange(out, output):
        old = staging / "old"
        try:
            os.rename(output, old)
            os.rename(out, output)
        except BaseException:
            restore_old(staging, output)
            raise
    _take_along(old, output)  # again: what has appeared meanwhile
    with suppress(OSError):
        for root, _, files in _walk(old):
            for name in (".", *files):
                keep_mode(Path(root) / name, output / os.path.relpath(root, old) / name)


def restore_old(staging: Path, output: Path) -> None:
    """Puts an output back that was moved away to be replaced and wasn't. Raises `OutputError` where
    something has taken its place."""
    old = staging / "old"
    if not old.is_dir() or not (staging / "out").exists():
        return  # it was replaced
    try:
        if os.path.lexists(output):
            os.rmdir(output)
        os.rename(old, output)
    except OSError as error:
        raise OutputError(
            f"{output}: a run was stopped while it replaced this, and something else has that name "
            f"now; what it was lies in {old}. "
            "Move one of them away."
        ) from error


def _take_along(old: Path, new: Path) -> None:
    """Links, or copies, what in `old` isn't of its checkpoint into `new`, where it stays if `old`
    goes, and brings that to the disk."""
    ours = written_names(old)
    for name in names_in(old):
        if name in ours or os.path.lexists(new / name):
            continue
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(old / name, new / name, follow_symlinks=False)
        except OSError:
            shutil.copy2(old / name, new / name, follow_symlinks=False)
            if not (new / name).is_symlink():
                sync_directory(new / name)
    for root, _, _ in _walk(old):
        if not os.listdir(root):
            (new / os.path.relpath(root, old)).mkdir(parents=True, exist_ok=True)
    for root, _, _ in _walk(new):
        sync_directory(Path(root))


def keep_mode(old: Path, new: Path) -> None:
    """Gives `new` the mode and the owner of what it replaces, if there is anything and where that
    is allowed."""
    with suppress(OSError):
        before, now = old.lstat(), new.lstat()
        if stat.S_IFMT(before.st_mode) != stat.S_IFMT(now.st_mode) or stat.S_ISLNK(now.st_mode):
            return
        if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
            with suppress(OSError):
                os.chown(new, before.st_uid, before.st_gid)
        mode = before.st_mode & (0o7777 if stat.S_ISDIR(now.st_mode) else 0o777)
        if mode != now.st_mode & 0o7777:
            os.chmod(new, mode)


def remove_tree(directory: Path) -> None:
    """Removes a directory of ours, whatever its modes."""

    def again(function: Callable[[str], object], path: str, _: object) -> None:
        if not os.path.lexists(path):
            return
        for one in (os.path.dirname(path), path):
            with suppress(OSError):
                if os.path.isdir(one) and not os.path.islink(one):
                    os.chmod(one, os.stat(one).st_mode | 0o700)
        if function in (os.open, os.scandir, os.lstat):
            shutil.rmtree(path)
        else:
            function(path)

    shutil.rmtree(directory, onerror=again)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two names in one step; False where the system can't (renameat2, Linux 3.15, not on
    every file system)."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(
        renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0
    )


def names_in(directory: Path) -> list[str]:
    """Every file and link in a directory, as paths relative to it."""
    found = []
    for root, directories, files in _walk(directory):
        links = [name for name in directories if (Path(root) / name).is_symlink()]
        found += [str((Path(root) / name).relative_to(directory)) for name in (*files, *links)]
    return found


def _walk(directory: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` that doesn't pass over what can't be listed. Raises `OSError`."""

    def stop(error: OSError) -> None:
        raise error

    return os.walk(directory, onerror=stop)


def sync_directory(directory: Path) -> None:
    """Brings a directory's entries to the disk, where its file system can."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(fd)
