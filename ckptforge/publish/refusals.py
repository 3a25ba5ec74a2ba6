"""What is refused of an output before any work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from ckptforge.checkpoints.manifest import manifest_path, read_manifest, written_names
from ckptforge.errors import CkptforgeError, OutputError
from ckptforge.foreign.paths import real_path
from ckptforge.formats.registry import format_by_ending
from ckptforge.planning.plan import Plan
from ckptforge.publish.directory import staging_path
from ckptforge.publish.file_system import FileSystem
from ckptforge.publish.replace import refuse_mounts
from ckptforge.publish.tree import lies_at, names_in
from ckptforge.spelling import flag
from ckptforge.storage.mounts import absolute
from ckptforge.storage.store import Kind, Room, Status
from ckptforge.wording import listing

_SPARE = 1 << 20  # bytes kept free beyond the plan


@contextmanager
def as_output_error(output: Path, what: str) -> Iterator[None]:
    """Raises `OutputError` for the system's errors."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise OutputError(f"{output}: {what}: {error.strerror}{where}.") from error


def check_output(disk: FileSystem, plan: Plan, overwrite: bool) -> None:
    """Refuses, before any work, an output that exists (without `overwrite`), that holds an input,
    or that can't be written where it is to be. Raises `OutputError`."""
    asked = _Asked(plan, overwrite, disk)
    with as_output_error(plan.output, "can't be written"):
        for rules in (_of_its_name, _of_what_is_there, _of_what_it_holds, _of_its_parent):
            for why in rules(asked):
                raise OutputError(why)


def check_room(disk: FileSystem, plan: Plan, disk_used: int) -> None:
    """Refuses, before any work, an output for which the disk has no room; `disk_used` are bytes
    that it takes up already. Raises `OutputError`."""
    asked = _Asked(plan, True, disk)
    with as_output_error(plan.output, "can't be written"):
        free = asked.room.free_bytes
    if plan.nbytes - disk_used + _SPARE > free:
        raise OutputError(
            f"{plan.output}: needs {plan.nbytes - disk_used:,} bytes and {_SPARE:,} to spare, but "
            f"only {free:,} are free in {asked.parent}; make room or choose another disk."
        )


class _Asked:
    """What is wanted, and what lies there."""

    def __init__(self, plan: Plan, overwrite: bool, disk: FileSystem) -> None:
        self.plan, self.overwrite, self.disk = plan, overwrite, disk
        self.output = plan.output

    @cached_property
    def real(self) -> Path:
        """The output without links."""
        return real_path(self.output)

    @cached_property
    def found(self) -> Status | None:
        """What has the output's name."""
        return self.disk.status(self.output) if lies_at(self.disk, self.output) else None

    @property
    def is_directory(self) -> bool:
        """Whether a directory has its name."""
        return self.found is not None and self.found.kind is Kind.DIRECTORY

    @cached_property
    def parent(self) -> Path:
        """The nearest directory above the output that there is."""
        parent = absolute(self.output).parent
        while not lies_at(self.disk, parent):
            parent = parent.parent
        return parent

    @cached_property
    def room(self) -> Room:
        """What the disk has there."""
        return self.disk.room(self.parent)


# Each rule yields why an output is refused. Those that come later rely on those before.


def _of_its_name(asked: _Asked) -> Iterator[str]:
    output, disk = asked.output, asked.disk
    beside = (staging_path(output), manifest_path(output, False)) if output.name else ()
    try:
        for name in (output, *beside):
            lies_at(disk, name)
        output.name.encode()
    except UnicodeEncodeError:
        yield f"{output}: can't be written: its name isn't Unicode, as manifests are."
    except (OSError, ValueError) as error:  # a name too long, a loop of links, a NUL
        yield f"{output}: can't be written: {getattr(error, 'strerror', None) or error}."
    for source in asked.plan.sources:
        path = real_path(source.path)
        if path == asked.real or asked.real in path.parents:
            yield f"{output}: holds {source.path}, which is being read; choose another output."
    if lies_at(disk, output, Kind.LINK):
        yield f"{output}: is a symbolic link; name the file or directory itself."
    here = (Path.cwd(), *Path.cwd().parents)
    in_use = asked.is_directory and (
        asked.real in here or str(asked.real) in disk.mounts_below(output)
    )
    if in_use or output.name in ("", ".."):
        yield (
            f"{output}: is the current directory, a parent or a mount point, which can't be "
            "replaced whole; name a directory in it."
        )


def _of_what_is_there(asked: _Asked) -> Iterator[str]:
    output, found, disk = asked.output, asked.found, asked.disk
    if found is None:
        return
    if found.kind not in (Kind.DIRECTORY, Kind.FILE):
        yield (
            f"{output}: is neither a file nor a directory, and isn't replaced; choose another "
            "output."
        )
    names = {True: "a directory", False: "a file"}
    there, wanted = names[asked.is_directory], names[asked.plan.is_directory]
    if there != wanted:
        yield f"{output}: exists and is {there}, but the output is {wanted}; choose another name."
    empty = asked.is_directory and not disk.names(output)
    if not asked.overwrite and not empty:
        yield f"{output}: exists already; give {flag('overwrite')} to replace it."
    refuse_mounts(disk, output)
    if asked.is_directory and not disk.room(output).permitted:
        yield f"{output}: can't be replaced: no permission to write in it."


def _of_what_it_holds(asked: _Asked) -> Iterator[str]:
    """Checkpoint files that neither a directory's manifest nor the plan names, and a file of the
    user's where the plan has a directory, and the other way round."""
    output, plan, disk = asked.output, asked.plan, asked.disk
    if asked.is_directory:
        known = written_names(output) | {str(path.relative_to(output)) for path in plan.paths}
        names = [name for name in names_in(disk, output) if name not in known]
        weights = {name for name in names if format_by_ending(Path(name)) is not None}
        if stale := sorted(n for n in names if n in weights or n.endswith(".index.json")):
            yield (
                f"{output}: holds checkpoint files that no manifest there names, and that would "
                f"not fit the new output:\n{listing(stale)}\n"
                "Remove them, or choose another output."
            )
    for path in plan.paths if asked.is_directory else ():
        for parent in path.relative_to(output).parents:
            place = output / parent
            if parent.name and lies_at(disk, place, *_NO_DIRECTORY, follow=True):
                yield f"{place}: is a file where the output has a directory; move it away."
        if lies_at(disk, path, Kind.DIRECTORY, follow=True):
            yield f"{path}: is a directory where the output has a file; move it away."
    for path in () if plan.is_directory else (*plan.paths, manifest_path(output, False)):
        if path == output or not lies_at(disk, path):
            continue
        is_file = lies_at(disk, path, Kind.FILE, follow=True)
        if is_file and (asked.overwrite or _is_manifest(path)):
            continue
        how = ", and isn't a file; remove it, or choose another output."
        if is_file:
            how = f"; give {flag('overwrite')} to replace it."
        yield f"{path}: would be written with {output.name}, but is there already{how}"


def _is_manifest(path: Path) -> bool:
    with suppress(CkptforgeError):
        read_manifest(path)
        return True
    return False


def _of_its_parent(asked: _Asked) -> Iterator[str]:
    output, parent = asked.output, asked.parent
    if not lies_at(asked.disk, parent, Kind.DIRECTORY, follow=True):
        yield f"{output}: can't be created: {parent} isn't a directory."
    if not asked.room.permitted:
        yield f"{output}: can't be written: no permission to write in {parent}."
    if asked.room.read_only:
        yield f"{output}: can't be written: {parent} is on a read-only file system."


_NO_DIRECTORY = (Kind.FILE, Kind.LINK, Kind.OTHER)
