"""How outputs appear in a service of objects: the files are uploaded from front to back, and appear
when all have been brought there, the manifest last.

What another run can go on from lies in `.<output>.ckptforge` beside the output: `run.json` says
what the run is made from, and an object for each file that was brought there whole has the hashes
of its tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptforge.checkpoints.manifest import manifest_path, written_names
from ckptforge.errors import CkptforgeError, InputNotFoundError, LeftError, OutputError, ReadError
from ckptforge.foreign.paths import real_path
from ckptforge.formats.layout import OutputFile
from ckptforge.formats.registry import format_by_ending
from ckptforge.planning.plan import Plan
from ckptforge.publish.directory import staging_path
from ckptforge.publish.earlier import Request
from ckptforge.publish.journal import differences, head_of
from ckptforge.publish.kept import finished_tensors
from ckptforge.publish.refusals import as_output_error
from ckptforge.remote.ordered import OrderedWriter
from ckptforge.remote.progress import Brought, head_in
from ckptforge.remote.sharing import NotesInService, OpenedObject, begin_file, opened_object
from ckptforge.remote.store import RemoteStore
from ckptforge.remote.turned import holding_turned
from ckptforge.remote.uploads import Upload, Uploads
from ckptforge.run.budget import Budget
from ckptforge.run.schedule import Finished
from ckptforge.spelling import command, flag
from ckptforge.storage.store import Kind
from ckptforge.values import Place
from ckptforge.wording import add_note, counted, listing

if TYPE_CHECKING:
    from ckptforge.publish.clean import Left

_log = logging.getLogger(__name__)


class ByUpload:
    """A service's way of publishing."""

    whole_files = True

    def __init__(self, store: RemoteStore, uploads: Uploads) -> None:
        self._store, self._uploads = store, uploads

    def check(self, plan: Plan, overwrite: bool) -> None:
        """Refuses, before any work, what can't or mustn't be written. Raises `OutputError`."""
        with as_output_error(plan.output, "can't be written"):
            for why in _refusals(self._store, plan, overwrite):
                raise OutputError(why)

    def check_room(self, plan: Plan, disk_used: int = 0) -> None:
        """A service has room."""

    def finish(self, plan: Plan, command: str | None) -> bool:
        """An output that is there whole has its manifest: there is nothing to finish."""
        return False

    def remains(self, output: Path) -> Path | None:
        """What couldn't be removed after an output was put in its place."""
        directory = staging_path(output)
        return directory if self._store.lies_at(directory) else None

    @contextmanager
    def publication(self, plan: Plan, request: Request) -> Iterator[Publication]:
        """See `publish/publisher.py:Publisher`."""
        made = Publication(self._store, self._uploads, plan, request)
        try:
            with as_output_error(plan.output, "can't be written"):
                made.begin()
            with holding_turned(plan, request.memory):
                yield made
            with as_output_error(plan.output, "can't be put in place"):
                made.put_in_place()
        except BaseException as error:
            with suppress(OSError, OutputError):
                for note in made.give_up(error):
                    add_note(error, note)
            raise
        finally:
            self._store.forget()

    def opened(
        self, plan: Plan, memory: int, *, durable: bool, made: bool
    ) -> AbstractContextManager[OpenedObject]:
        """See `opened_object`."""
        return opened_object(self._store, self._uploads, plan, memory)

    def notes(self, directory: Path) -> NotesInService:
        """See `Notes`."""
        return NotesInService(self._store, self._uploads, directory)

    def clean(self, path: Path, dry_run: bool) -> list[Left]:
        """See `remove_begun`."""
        from ckptforge.remote.cleaning import remove_begun

        return remove_begun(self._store, self._uploads, path, dry_run)


class Publication:
    """An output that is being uploaded."""

    def __init__(self, store: RemoteStore, uploads: Uploads, plan: Plan, request: Request) -> None:
        self._store, self._uploads, self._plan, self._request = store, uploads, plan, request
        self._directory = staging_path(plan.output)
        self._opened: dict[str, Upload] = {}
        self._kept: dict[Place, Finished] = {}
        self._begun = self._placing = self._placed = False
        self._old = set[str]()
        self.writers: dict[Path, OrderedWriter] = {}
        self.small_files = dict(plan.small_files)
        self.journal: Brought | None = None

    @property
    def disk_used(self) -> int:
        """Of this machine's disks: nothing."""
        return 0

    @property
    def mtimes(self) -> dict[Path, int]:
        """When the files appeared. Raises `OutputError`."""
        with as_output_error(self._plan.output, "can't be read"):
            return {file.path: self._store.status(file.path).mtime_ns for file in self._plan.files}

    def kept(self, budget: Budget) -> Mapping[Place, Finished]:
        """The tensors of files that an earlier run brought there whole."""
        return self._kept

    def begin(self) -> None:
        """Goes on with what an earlier run left, or begins. Raises `OSError`, `LeftError`."""
        plan, request = self._plan, self._request
        head = head_of(plan, request.command)
        before = head_in(self._directory)
        going_on = before is not None and request.resume
        if before is not None:
            self._refuse_left(before, head)
        begun_from = before if before is not None and going_on else head
        journal = Brought(plan, self._uploads, self._directory, begun_from)
        if going_on:
            journal.take_up(plan)
            self._kept = finished_tensors(plan, journal.tensors)
        elif before is not None:
            self._throw_away()
        self._begun = True
        if request.journaled:
            self.journal = journal
            if not going_on:
                journal.begin()
        self._opened = journal.opened
        if going_on:
            self._abort_strays()  # before any upload of this run is begun
        for file in plan.files:
            if (name := plan.name_of(file.path)) not in self._opened:
                begun = begin_file(self._uploads, plan, file, request.memory)
                self._opened[name], self.writers[file.path] = begun

    def take_over(self, file: OutputFile, left: Any) -> bool:
        """See `publish/publisher.py:Publication`."""
        name = self._plan.name_of(file.path)
        with as_output_error(file.path, "can't be written"):
            staged = self._directory / name
            upload = self._uploads.take_up(file.path, staged, file.size, left)
        if upload is not None:
            self._opened[name] = upload
            self.writers.pop(file.path, None)
        return upload is not None

    def _abort_strays(self) -> None:
        """Aborts the uploads of this output's files that processes left which were killed. Raises
        `OSError`."""
        own = {upload.name for upload in self._opened.values()}
        paths = {file.path for file in self._plan.files}
        for begun in self._uploads.begun(self._plan.output):
            if begun.path in paths and begun.name not in own:
                self._uploads.give_up(begun)

    def _refuse_left(self, before: Mapping[str, object], head: Mapping[str, object]) -> None:
        output, where = self._plan.output, self._directory
        if self._request.resume:
            if reason := differences(before, head):
                raise LeftError(
                    f"{output}: what an earlier run left, in {where}, can't be resumed: {reason}. "
                    f"Start over with {flag('overwrite')} and without {flag('resume')}, or remove "
                    f"it with {command('clean', output)}."
                )
        elif not self._request.overwrite:
            raise LeftError(
                f"{output}: another run is writing it, or stopped: it left {where}. If it has "
                f"stopped, continue with {flag('resume')}, start over with {flag('overwrite')}, or "
                f"remove what it left with {command('clean', output)}."
            )

    def _throw_away(self) -> None:
        for begun in self._uploads.begun(self._plan.output):
            self._uploads.give_up(begun)
        self._remove_notes()

    def _remove_notes(self) -> None:
        self._uploads.remove(self._directory)
        self._store.forget()

    def sync(self) -> None:
        """Makes the files appear. Raises `OutputError`."""
        if self._placing:
            return
        plan, replace = self._plan, self._request.overwrite
        with as_output_error(plan.output, "can't be put in place"):
            for writer in self.writers.values():
                writer.sync()
            for upload in self._opened.values():
                upload.settle()
            if self.journal is not None:
                self.journal.settle()
            self._placing = True
            manifest = manifest_path(plan.output, plan.is_directory)
            if replace:
                # no manifest is better than one of other contents
                self._old = written_names(plan.output) if plan.is_directory else set()
                self._uploads.remove(manifest)
            for upload in self._opened.values():
                upload.complete(replace)
        self._store.forget()

    def put_in_place(self) -> None:
        """Makes all appear, the manifest last. Raises `OSError`, `OutputError`."""
        self.sync()
        plan, replace = self._plan, self._request.overwrite or self._request.resume
        base = plan.output if plan.is_directory else plan.output.parent
        new = {plan.name_of(file.path) for file in plan.files} | set(self.small_files)
        for name in self._old - new:
            self._uploads.remove(base / name)
        for name, content in self.small_files.items():
            self._uploads.write(base / name, content, replace)
        self._placed = True
        with suppress(OSError):  # `clean` finds the rest
            self._remove_notes()
            if self._request.several:
                self._abort_strays()

    def give_up(self, error: BaseException) -> Iterator[str]:
        """Aborts what isn't kept for another run; yields what a user needs to know."""
        if self._placed or not self._begun:
            return
        stopped = isinstance(error, OutputError | ReadError | InputNotFoundError)
        keep = stopped or not isinstance(error, CkptforgeError)
        if self.journal is not None:
            with suppress(OSError):
                self.journal.settle()
        saved = self.journal.saved if self.journal is not None and keep else set()
        for name, upload in self._opened.items():
            if name not in saved:
                with suppress(OSError):
                    upload.abort()
        if self._request.several:
            with suppress(OSError):
                self._abort_strays()
        if not self._placing and not isinstance(error, CkptforgeError):
            yield "No output was created."
        if saved:
            yield (
                f"{counted(len(saved), 'file')} of {len(self._plan.files)} were brought there: the "
                f"same command with {flag('resume')} continues from there, "
                f"{command('clean', self._plan.output)} removes them."
            )
        else:
            self._remove_notes()


def _refusals(store: RemoteStore, plan: Plan, overwrite: bool) -> Iterator[str]:
    store.forget()
    output, manifest = plan.output, manifest_path(plan.output, plan.is_directory)
    if not output.name or output.parent == output.parent.parent:
        yield f"{output}: is no name of an output; name something in it."
    for file in plan.files:
        if file.seals:
            yield (
                f"{file.path}: a {file.path.suffix} file has checksums of what follows them, so "
                "that it can't be uploaded from front to back: write it to a disk, or another "
                "format."
            )
    for source in plan.sources:
        path = real_path(source.path)
        if output in (path, *path.parents):
            yield f"{output}: holds {source.path}, which is being read; choose another output."
    if plan.is_directory:
        yield from _of_directory(store, plan, overwrite)
        return
    if store.lies_at(output, Kind.DIRECTORY):
        yield f"{output}: objects lie below it, but the output is one; choose another name."
    for path in (output, *plan.paths, manifest):
        if not overwrite and store.lies_at(path):
            yield f"{path}: exists already; give {flag('overwrite')} to replace it."


def _of_directory(store: RemoteStore, plan: Plan, overwrite: bool) -> Iterator[str]:
    output = plan.output
    if store.lies_at(output, Kind.FILE):
        yield f"{output}: is an object, but the output is a directory; choose another name."
    if not store.lies_at(output):
        return
    if not overwrite:
        yield f"{output}: exists already; give {flag('overwrite')} to replace it."
    known = written_names(output) | {plan.name_of(file.path) for file in plan.files}
    known |= set(plan.small_files)
    found = (name for name in store.names(output) if name not in known)
    if stale := sorted(name for name in found if format_by_ending(Path(name)) is not None):
        yield (
            f"{output}: holds checkpoint files that no manifest there names, and that would not "
            f"fit the new output:\n{listing(stale)}\nRemove them, or choose another output."
        )
