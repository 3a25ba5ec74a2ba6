"""Sources that are removed as soon as all that was made of them is durable, for whoever has no room
for two models.

Of each its *husk* is kept until the output is in place: a file as large, without the tensors'
bytes, by which a run that is resumed makes the same plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from msgspec.structs import replace

from ckptforge.checkpoints.files import refuse_changed
from ckptforge.errors import CkptforgeError, OutputError
from ckptforge.formats.index import FileIndex
from ckptforge.planning.plan import Plan
from ckptforge.publish import journal as journals
from ckptforge.publish.directory import staged_file, staging_path
from ckptforge.publish.file_system import FileSystem, file_system_of, sync
from ckptforge.publish.journal import Journal
from ckptforge.publish.refusals import as_output_error
from ckptforge.publish.tree import lies_at, make_directories
from ckptforge.run.audit import Audit
from ckptforge.spelling import flag
from ckptforge.storage.address import address
from ckptforge.storage.files import open_file, read_pieces, write_exactly
from ckptforge.storage.mounts import absolute, mounted
from ckptforge.storage.store import Kind, Reader, Status, Store, Writer
from ckptforge.wording import listing

_PIECE = 1 << 20


def refuse_to_consume(plan: Plan) -> None:
    """Raises `OutputError` where sources can't be removed without doubt: others have them, too, or
    the output doesn't hold all of them."""
    out, wanted = plan.output, flag("consume")
    lost = [
        f"{reason}: {name}"
        for reason, names in plan.left_out.items()
        if not reason.startswith("copies of")
        for name in names
    ]
    if lost or plan.read:
        lost = lost or [f"parts of {path}" for path in plan.read]
        raise OutputError(
            f"{out}: {wanted} would lose what the output doesn't hold:\n{listing(lost)}\n"
            "Nothing was written."
        )
    seen: set[tuple[int, int]] = set()
    for file in plan.sources:
        if why := _not_to_be_removed(file.path, seen):
            raise OutputError(f"{file.path}: {why}, so {wanted} can't be given.")


def _not_to_be_removed(path: Path, seen: set[tuple[int, int]]) -> str | None:
    if address(path) is not None:
        return "isn't a local file"
    disk = file_system_of(path)
    with as_output_error(path, "can't be examined"):
        found, room = disk.status(path, follow=False), disk.room(absolute(path).parent)
    if found.kind is not Kind.FILE or disk.real_path(path) != absolute(path):
        return "is a link, or lies behind one"
    if found.links > 1:
        return f"is a file with {found.links} names"
    if found.number in seen:
        return "is given twice"
    seen.add(found.number)
    return None if room.permitted and not room.read_only else "lies where nothing can be removed"


class Consuming:
    """The sources of a run, which are removed when nothing needs them. `check` raises where what
    casts did so far is refused."""

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        writers: Mapping[Path, Writer],
        check: Callable[[Audit], None],
    ) -> None:
        self.plan, self.journal, self.writers, self.check = plan, journal, writers, check
        self.disk = file_system_of(plan.output)
        self.husks = staging_path(plan.output) / "consumed"
        for index in self.gone:  # a run may have been stopped before it removed it
            self._remove(plan.sources[index])

    @property
    def gone(self) -> set[int]:
        """The sources that were removed."""
        return self.journal.consumed

    @cached_property
    def _directories(self) -> list[Path]:
        """All that have the name of something that must be there after a crash, lowest first."""
        home = absolute(self.husks.parent)
        files = [absolute(staged_file(self.plan, path)) for path in self.writers]
        below = {d for file in files for d in file.parents if d.is_relative_to(home)}
        return [self.husks, *sorted(below, reverse=True), home.parent]

    def prepare(self, source: int) -> None:
        """Makes all durable that is written, and the source's husk."""
        for path, writer in self.writers.items():
            sync(writer, path)
        with as_output_error(self.husks, "can't be written"):
            make_directories(self.disk, self.husks)
            _make_husk(self.disk, self.husks / str(source), self.plan.sources[source])
            for directory in self._directories:
                self.disk.sync_directory(directory)

    def let_go(self, source: int, audit: Audit) -> None:
        """Removes the source, which is noted first. Raises `OutputError`."""
        self.check(audit)
        refuse_changed(self.plan.sources[source])
        self.journal.add_consumed(source)
        self._remove(self.plan.sources[source])

    def _remove(self, file: FileIndex) -> None:
        disk, path = file_system_of(file.path), file.path
        if isinstance(disk, _WithHusks):
            disk = disk.disk
        with as_output_error(path, "can't be removed"):
            if not lies_at(disk, path, Kind.FILE):
                return
            found = disk.status(path, follow=False)
            if (found.size, found.mtime_ns) == (file.size, file.mtime_ns):
                disk.unlink(path)
                disk.sync_directory(absolute(path).parent)


def _make_husk(disk: FileSystem, path: Path, file: FileIndex) -> None:
    held = sorted(
        (extent.offset, extent.offset + extent.length)
        for stored in file.tensors.values()
        for extent in stored.extents
    )
    buffer = memoryview(bytearray(_PIECE))
    with closing(disk.create(path)) as writer, closing(open_file(file.path)) as reader:
        writer.resize(0)
        writer.resize(file.size)
        at = 0
        for start, end in (*held, (file.size, file.size)):
            for piece in read_pieces(reader, at, max(start - at, 0), buffer, file.path):
                write_exactly(writer, at, piece, path)
                at += len(piece)
            at = max(at, end)
        writer.sync()


@contextmanager
def husks_mounted(output: Path) -> Iterator[None]:
    """Husks stand where the sources were that an earlier run for an output has removed."""
    directory, journal = staging_path(output), None
    with suppress(OSError, ValueError, CkptforgeError):  # the verb says what is wrong
        disk = file_system_of(output)
        if address(output) is None and lies_at(disk, directory / "consumed"):
            journal = journals.look(disk, directory / "journal")
    found: dict[Path, dict[Path, tuple[Path, Mapping[str, Any]]]] = {}
    head, consumed = (journal.head, journal.consumed) if journal is not None else ({}, ())
    for index in consumed:
        about = head["sources"][index]
        path = Path(about["path"])
        found.setdefault(path.parent, {})[path] = directory / "consumed" / str(index), about
    with ExitStack() as stack:
        for parent, husks in found.items():
            disk = file_system_of(parent)
            stack.enter_context(mounted(parent, cast(Store, _WithHusks(disk, husks))))
        yield


class _WithHusks:
    """A file system with husks under the names that files had."""

    def __init__(
        self, disk: FileSystem, husks: Mapping[Path, tuple[Path, Mapping[str, Any]]]
    ) -> None:
        self.disk, self._husks = disk, husks

    def status(self, path: Path, *, follow: bool = True) -> Status:
        """Of a husk as of the file that it is of."""
        found = self._husks.get(absolute(path))
        if found is None:
            return self.disk.status(path, follow=follow)
        return _as_before(self.disk.status(found[0], follow=follow), found[1])

    def names(self, directory: Path) -> list[str]:
        """With those of husks."""
        own = (path.name for path in self._husks if path.parent == absolute(directory))
        return sorted({*self.disk.names(directory), *own})

    def open(self, path: Path) -> Reader | None:
        """A husk, or a file."""
        found = self._husks.get(absolute(path))
        if found is None:
            return self.disk.open(path)
        reader = self.disk.open(found[0])
        return None if reader is None else _HuskReader(reader, found[1])


def _of_the_disk(name: str) -> Callable[..., Any]:
    return lambda self, *arguments, **more: getattr(self.disk, name)(*arguments, **more)


for _name in {*vars(FileSystem), *vars(Store)} - {*vars(_WithHusks)}:
    if not _name.startswith("_"):
        setattr(_WithHusks, _name, _of_the_disk(_name))


class _HuskReader:
    """A husk that is open."""

    def __init__(self, reader: Reader, about: Mapping[str, Any]) -> None:
        self._reader, self._about = reader, about

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def status(self) -> Status:
        """As of the file that it is of."""
        return _as_before(self._reader.status(), self._about)


def _as_before(status: Status, about: Mapping[str, Any]) -> Status:
    return replace(status, mtime_ns=about["mtime_ns"])
