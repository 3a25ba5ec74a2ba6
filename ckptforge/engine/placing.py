"""Putting finished outputs in their place: in one step where the system has one, and so that a step that was cut off can be done
again."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from ckptforge.engine.manifest import written_names
from ckptforge.errors import OutputError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h


def place_files(out: Path, output: Path, overwrite: bool) -> None:
    """Moves a finished file and those that go with it beside it; the file itself first, so that its manifest is never without it.
    Raises `FileExistsError` for one that has appeared, unless it may be replaced."""
    for path in sorted(out.iterdir(), key=lambda path: path.name != output.name):
        if path.name == output.name and not overwrite:
            try:
                os.link(path, output)
                path.unlink()
                continue
            except FileExistsError:
                raise
            except OSError:
                pass  # a file system without links
        keep_mode(output.parent / path.name, path)
        os.replace(path, output.parent / path.name)
    sync_directory(output.parent)


def mounts_under(directory: Path) -> list[str]:
    """Mount points in or below a directory, which must be neither moved nor emptied with it (proc(5), mountinfo)."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return [
            os.path.join(root, name) for root, names, _ in os.walk(directory) for name in names if os.path.ismount(os.path.join(root, name))
        ]
    base = os.path.realpath(directory)
    points = [re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split(" ")[4]) for line in lines]
    return [point for point in points if point == base or point.startswith(base.rstrip("/") + "/")]


def refuse_mounts(directory: Path) -> None:
    """Raises `OutputError` where another file system is mounted in a directory that is to be replaced or removed."""
    if directory.is_dir() and (found := mounts_under(directory)):
        raise OutputError(
            f"{directory}: {found[0]} is mounted in it, so that it is neither replaced nor removed; unmount it, or choose another."
        )


def place_directory(staging: Path, output: Path) -> None:
    """Puts `staging/out` in the place of `output`. What lies in an existing one and isn't part of its checkpoint is kept, and so are
    the modes and owners of its directories."""
    out = staging / "out"
    refuse_mounts(output)
    if output.is_dir():
        _take_along(output, out)
        if not _exchange(out, output):
            os.rename(output, staging / "old")
            os.rename(out, output)
    else:
        os.rename(out, output)
    sync_directory(output.parent)


def restore_old(staging: Path, output: Path) -> None:
    """Puts an output back that was moved away to be replaced and wasn't."""
    if (staging / "old").is_dir() and not os.path.lexists(output):
        os.rename(staging / "old", output)


def _take_along(old: Path, new: Path) -> None:
    """Links, or copies, what in `old` isn't of its checkpoint into `new`, where it stays if `old` goes."""
    ours = written_names(old)
    for name in names_in(old):
        if name in ours or os.path.lexists(new / name):
            continue
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(old / name, new / name, follow_symlinks=False)
        except OSError:
            shutil.copy2(old / name, new / name, follow_symlinks=False)
    for root, _, _ in os.walk(old):
        other = new / os.path.relpath(root, old)
        if not os.listdir(root):
            other.mkdir(parents=True, exist_ok=True)
    for root, _, _ in os.walk(old):
        other = new / os.path.relpath(root, old)
        if other.is_dir():
            keep_mode(Path(root), other)


def keep_mode(old: Path, new: Path) -> None:
    """Gives `new` the mode and, where that is allowed, the owner of what it is about to replace, if there is anything."""
    try:
        state = old.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(state.st_mode):
        return
    with suppress(OSError):
        os.chown(new, state.st_uid, state.st_gid)
    os.chmod(new, state.st_mode & 0o777)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two names in one step; False where the system can't (renameat2, Linux 3.15, not on every file system)."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0)


def names_in(directory: Path) -> list[str]:
    """Every file and link in a directory, as paths relative to it."""
    found = []
    for root, directories, files in os.walk(directory):
        links = [name for name in directories if (Path(root) / name).is_symlink()]
        found += [str((Path(root) / name).relative_to(directory)) for name in (*files, *links)]
    return found


def sync_directory(directory: Path) -> None:
    """Brings a directory's entries to the disk."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
