"""Outputs that appear whole under their final name, or not at all."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ckptforge.engine.manifest import written_names
from ckptforge.engine.moves import write_exactly
from ckptforge.engine.plan import Plan
from ckptforge.errors import OutputError, listing

_SPARE = 1 << 20  # bytes kept free beyond the plan


def check_output(plan: Plan, overwrite: bool) -> None:
    """Refuses, before any work, an output that exists (without `overwrite`), that holds an input, or that can't be written
    where it is to be. Raises `OutputError`."""
    output = plan.output
    is_directory = plan.is_directory
    try:
        os.lstat(output)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name too long, a loop of links, a NUL
        raise OutputError(f"{output}: can't be written: {getattr(error, 'strerror', None) or error}.") from error
    resolved = Path(os.path.realpath(output))
    for source in plan.sources:
        path = Path(os.path.realpath(source.path))
        if path == resolved or resolved in path.parents:
            raise OutputError(f"{output}: holds {source.path}, which is being read; choose another output.")
    if output.is_symlink():
        raise OutputError(f"{output}: is a symbolic link; name the file or directory itself.")
    if not output.name or output.name == ".." or (output.is_dir() and (os.path.ismount(output) or resolved == Path.cwd())):
        raise OutputError(
            f"{output}: is the current directory, a parent or a mount point, which can't be replaced whole; name a directory in it."
        )
    if os.path.lexists(output):
        if not output.is_dir() and not output.is_file():
            raise OutputError(f"{output}: is neither a file nor a directory, and isn't replaced; choose another output.")
        found, wanted = ("a directory" if yes else "a file" for yes in (output.is_dir(), is_directory))
        if found != wanted:
            raise OutputError(f"{output}: exists and is {found}, but the output is {wanted}; choose another name.")
        if not overwrite and not (is_directory and not any(output.iterdir())):
            raise OutputError(f"{output}: exists already; give --overwrite to replace it.")
        if is_directory and (stale := _foreign_checkpoints(plan)):
            raise OutputError(
                f"{output}: holds checkpoint files that no manifest there names, and that would not fit the new output:\n{listing(stale)}\n"
                "Remove them, or choose another output."
            )
    parent = _existing_parent(output)
    if not parent.is_dir():
        raise OutputError(f"{output}: can't be created: {parent} isn't a directory.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{output}: can't be written: no permission to write in {parent}.")
    if os.statvfs(parent).f_flag & os.ST_RDONLY:
        raise OutputError(f"{output}: can't be written: {parent} is on a read-only file system.")


def check_room(plan: Plan) -> None:
    """Refuses, before any work, an output for which the disk has no room. Raises `OutputError`."""
    parent = _existing_parent(plan.output)
    disk = os.statvfs(parent)
    free = disk.f_bavail * disk.f_frsize
    if plan.nbytes + _SPARE > free:
        raise OutputError(
            f"{plan.output}: needs {plan.nbytes} bytes but only {free} are free in {parent}; make room or choose another disk."
        )


def _existing_parent(path: Path) -> Path:
    parent = path.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    return parent


@dataclass
class Staging:
    """Outputs in the making: an open descriptor for each final path, and the small files to be written with them."""

    descriptors: dict[Path, int] = field(default_factory=dict)
    small_files: dict[str, bytes] = field(default_factory=dict)

    def sync(self) -> None:
        """Brings the files to the disk. Raises `OutputError`."""
        for path, fd in self.descriptors.items():
            _sync(fd, path)


@contextmanager
def staged(plan: Plan) -> Iterator[Staging]:
    """Opens the plan's files under a temporary name next to the output.

    On a clean exit everything is synced and renamed to its final name; on any exception it is removed, with the
    directories that were made for it. Small files go into an output directory, or beside an output file. An existing
    output is replaced; what lies in it and isn't part of a checkpoint is kept.
    """
    output = plan.output
    is_directory = plan.is_directory
    _allow_open_files(len(plan.files) + len(plan.sources) + 64)
    parents = _make_parents(output)
    work = output.parent / f".{output.name}.ckptforge-{os.getpid()}.tmp"
    staging = Staging(small_files=dict(plan.small_files))
    try:
        try:
            work.mkdir()
        except OSError as error:
            raise OutputError(f"{output}: can't be written: {error.strerror} in {output.parent}.") from error
        for file in plan.files:
            temporary = work / (file.path.relative_to(output) if is_directory else output.name)
            temporary.parent.mkdir(parents=True, exist_ok=True)
            staging.descriptors[file.path] = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        yield staging
        staging.sync()
        for name, content in staging.small_files.items():
            _write_small(work / name, content)
        _publish(work, output, is_directory)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        for parent in reversed(parents):
            try:
                parent.rmdir()
            except OSError:
                break
        raise
    finally:
        for fd in staging.descriptors.values():
            os.close(fd)


def _allow_open_files(count: int) -> None:
    """Raises the process's soft limit of open files where a job with many ranks needs more. Raises `OutputError`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or count <= soft:
        return
    if hard != resource.RLIM_INFINITY and count > hard:
        raise OutputError(f"{count} files must be open at a time, but the system allows {hard} (ulimit -Hn); raise that limit.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _make_parents(output: Path) -> list[Path]:
    """Makes the directories above the output; returns those that were missing, the highest first."""
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


def _sync(fd: int, path: Path) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        raise OutputError(f"{path}: can't be synced to disk: {error.strerror}; nothing is left under the final name.") from error


def _write_small(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write_exactly(fd, 0, content, path)
        _sync(fd, path)
    finally:
        os.close(fd)


def write_file(path: Path, content: bytes) -> None:
    """Writes one small file whole or not at all, in the place of an existing one. Raises `OutputError`."""
    temporary = path.with_name(f".{path.name}.ckptforge-{os.getpid()}.tmp")
    try:
        _write_small(temporary, content)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _publish(work: Path, output: Path, is_directory: bool) -> None:
    try:
        if not is_directory:
            os.replace(work / output.name, output)
            for path in work.iterdir():
                os.replace(path, output.parent / path.name)
            work.rmdir()
        elif output.is_dir():
            _replace_directory(work, output)
        else:
            os.rename(work, output)
        _sync_directory(output.parent)
    except OSError as error:
        raise OutputError(f"{output}: can't be put in place: {error.strerror}.") from error


def _replace_directory(work: Path, output: Path) -> None:
    """Puts `work` in the place of `output`; on any failure before that, `output` is what it was."""
    ours = written_names(output)
    old = work.with_name(work.name + ".old")
    try:
        os.rename(output, old)
        os.rename(work, output)
    except BaseException:
        if not os.path.lexists(output) and os.path.lexists(old):
            os.rename(old, output)
        raise
    try:
        for name in _names_in(old):
            if name not in ours and not os.path.lexists(output / name):
                (output / name).parent.mkdir(parents=True, exist_ok=True)
                os.rename(old / name, output / name)
        shutil.rmtree(old)
    except OSError as error:
        raise OutputError(
            f"{output}: the new output is in place and whole, but what was there before couldn't be cleared away ({error.strerror}); "
            f"it lies in {old}."
        ) from error


def _names_in(directory: Path) -> list[str]:
    """Every file and link in a directory, as paths relative to it."""
    found = []
    for root, directories, files in os.walk(directory):
        links = [name for name in directories if (Path(root) / name).is_symlink()]
        found += [str((Path(root) / name).relative_to(directory)) for name in (*files, *links)]
    return found


def _foreign_checkpoints(plan: Plan) -> list[str]:
    """Checkpoint files of an existing output directory that neither its manifest nor the plan names."""
    if not plan.output.is_dir():
        return []
    known = written_names(plan.output) | {str(path.relative_to(plan.output)) for path in plan.paths}
    return sorted(
        name
        for name in _names_in(plan.output)
        if name not in known and (Path(name).suffix in (".ckpt", ".safetensors") or name.endswith(".index.json"))
    )


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
