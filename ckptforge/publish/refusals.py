"""What is refused of an output before any work: one that exists, that can't be written, that
doesn't fit on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ckptforge.checkpoints.manifest import manifest_path, read_manifest, written_names
from ckptforge.checkpoints.unfinished import SUFFIX
from ckptforge.errors import CkptforgeError, OutputError, listing
from ckptforge.planning.plan import Plan
from ckptforge.publish.replace import names_in, refuse_mounts
from ckptforge.spelling import flag

_SPARE = 1 << 20  # bytes kept free beyond the plan


@contextmanager
def said(output: Path, what: str) -> Iterator[None]:
    """Raises `OutputError` for the system's errors."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise OutputError(f"{output}: {what}: {error.strerror}{where}.") from error


def check_output(plan: Plan, overwrite: bool) -> None:
    """Refuses, before any work, an output that exists (without `overwrite`), that holds an input,
    or that can't be written where it is to be. Raises `OutputError`."""
    with said(plan.output, "can't be written"):
        _check_output(plan, overwrite)


def _check_output(plan: Plan, overwrite: bool) -> None:
    output = plan.output
    is_directory = plan.is_directory
    try:
        for name in (
            (output, output.with_name(f".{output.name}{SUFFIX}"), manifest_path(output, False))
            if output.name
            else (output,)
        ):
            with suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(name)
        output.name.encode()
    except UnicodeEncodeError as error:
        raise OutputError(
            f"{output}: can't be written: the name isn't Unicode, and its manifest "
            "couldn't hold it."
        ) from error
    except (OSError, ValueError) as error:  # a name too long, a loop of links, a NUL
        raise OutputError(
            f"{output}: can't be written: {getattr(error, 'strerror', None) or error}."
        ) from error
    resolved = Path(os.path.realpath(output))
    for source in plan.sources:
        path = Path(os.path.realpath(source.path))
        if path == resolved or resolved in path.parents:
            raise OutputError(
                f"{output}: holds {source.path}, which is being read; choose another output."
            )
    if output.is_symlink():
        raise OutputError(f"{output}: is a symbolic link; name the file or directory itself.")
    if (
        not output.name
        or output.name == ".."
        or (
            output.is_dir()
            and (os.path.ismount(output) or resolved in (Path.cwd(), *Path.cwd().parents))
        )
    ):
        raise OutputError(
            f"{output}: is the current directory, a parent or a mount point, which can't be "
            "replaced whole; name a directory in it."
        )
    if os.path.lexists(output):
        if not output.is_dir() and not output.is_file():
            raise OutputError(
                f"{output}: is neither a file nor a directory, and isn't replaced; "
                "choose another output."
            )
        found, wanted = (
            "a directory" if yes else "a file" for yes in (output.is_dir(), is_directory)
        )
        if found != wanted:
            raise OutputError(
                f"{output}: exists and is {found}, but the output is {wanted}; choose another name."
            )
        if not overwrite and not (is_directory and not any(output.iterdir())):
            raise OutputError(f"{output}: exists already; give {flag('overwrite')} to replace it.")
        refuse_mounts(output)
        if is_directory and not os.access(output, os.W_OK | os.X_OK):
            raise OutputError(f"{output}: can't be replaced: no permission to write in it.")
        if is_directory and (stale := _foreign_checkpoints(plan)):
            raise OutputError(
                f"{output}: holds checkpoint files that no manifest there names, and that would "
                f"not fit the new output:\n{listing(stale)}\n"
                "Remove them, or choose another output."
            )
        _refuse_collisions(plan)
    for path in () if is_directory else (*plan.paths, manifest_path(output, False)):
        if (
            path != output
            and os.path.lexists(path)
            and not (path.is_file() and (overwrite or _is_manifest(path)))
        ):
            raise OutputError(
                f"{path}: would be written with {output.name}, but is there already"
                + (
                    f"; give {flag('overwrite')} to replace it."
                    if path.is_file()
                    else ", and isn't a file; remove it, or choose another output."
                )
            )
    parent = _existing_parent(output)
    if not parent.is_dir():
        raise OutputError(f"{output}: can't be created: {parent} isn't a directory.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{output}: can't be written: no permission to write in {parent}.")
    if os.statvfs(parent).f_flag & os.ST_RDONLY:
        raise OutputError(f"{output}: can't be written: {parent} is on a read-only file system.")


def _refuse_collisions(plan: Plan) -> None:
    """Refuses a file of the user's where the plan has a directory, and the other way round."""
    for path in plan.paths if plan.is_directory else ():
        for parent in path.relative_to(plan.output).parents:
            if (
                parent.name
                and (plan.output / parent).exists()
                and not (plan.output / parent).is_dir()
            ):
                raise OutputError(
                    f"{plan.output / parent}: is a file where the output has a "
                    "directory; move it away."
                )
        if path.is_dir():
            raise OutputError(f"{path}: is a directory where the output has a file; move it away.")


def _is_manifest(path: Path) -> bool:
    try:
        read_manifest(path)
    except CkptforgeError:
        return False
    return True


def check_room(plan: Plan, held: int = 0) -> None:
    """Refuses, before any work, an output for which the disk has no room; `held` are bytes that it
    takes up already. Raises `OutputError`."""
    parent = _existing_parent(plan.output)
    with said(plan.output, "can't be written"):
        disk = os.statvfs(parent)
    free = disk.f_bavail * disk.f_frsize
    if plan.nbytes - held + _SPARE > free:
        raise OutputError(
            f"{plan.output}: needs {plan.nbytes - held} bytes but only {free} are free in "
            f"{parent}; make room or choose another disk."
        )


def _existing_parent(path: Path) -> Path:
    parent = path.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    return parent


def _foreign_checkpoints(plan: Plan) -> list[str]:
    """Checkpoint files of an existing output directory that neither its manifest nor the plan
    names."""
    if not plan.output.is_dir():
        return []
    known = written_names(plan.output) | {str(path.relative_to(plan.output)) for path in plan.paths}
    return sorted(
        name
        for name in names_in(plan.output)
        if name not in known
        and (Path(name).suffix in (".ckpt", ".safetensors") or name.endswith(".index.json"))
    )
