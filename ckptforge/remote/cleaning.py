"""What runs that were stopped left in a service, and removing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ckptforge.checkpoints.unfinished import SUFFIX
from ckptforge.errors import InputNotFoundError
from ckptforge.publish.directory import output_of, staging_path
from ckptforge.publish.refusals import as_output_error
from ckptforge.remote.progress import left_in
from ckptforge.remote.store import RemoteStore
from ckptforge.remote.uploads import Begun, Uploads
from ckptforge.storage.store import Kind

if TYPE_CHECKING:
    from ckptforge.publish.clean import Left


def remove_begun(store: RemoteStore, uploads: Uploads, path: Path, dry_run: bool) -> list[Left]:
    """Aborts the uploads of an output, or of those in a directory, and removes what runs noted of
    them, unless it is a dry run. Raises `InputNotFoundError`, `OutputError`."""
    store.forget()
    with as_output_error(path, "can't be looked through"):
        found = [_remove(store, uploads, one, dry_run) for one in _staging(store, path)]
        found += [_abort(uploads, begun, dry_run) for begun in uploads.begun(path)]
        if not found and not store.lies_at(path):
            raise InputNotFoundError(f"{path}: nothing lies there.")
    store.forget()
    return found


def _staging(store: RemoteStore, path: Path) -> list[Path]:
    beside = [staging_path(path)] if path.name else []
    names = store.names(path) if store.lies_at(path, Kind.DIRECTORY) else []
    inside = [path / name for name in names if name.startswith(".") and name.endswith(SUFFIX)]
    return [one for one in (*beside, *inside) if store.lies_at(one)]


def _remove(store: RemoteStore, uploads: Uploads, directory: Path, dry_run: bool) -> Left:
    from ckptforge.publish.clean import Left

    finished = sum(len(one.get("tensors", ())) for one in left_in(directory))
    nbytes = sum(store.status(directory / name).size for name in store.names(directory))
    if not dry_run:
        uploads.remove(directory)
    return Left(str(directory), str(output_of(directory)), finished, nbytes)


def _abort(uploads: Uploads, begun: Begun, dry_run: bool) -> Left:
    from ckptforge.publish.clean import Left

    failed = None
    if not dry_run:
        try:
            uploads.give_up(begun)
        except OSError as error:
            failed = f"{begun.path}: its upload can't be aborted: {error.strerror}."
    where = f"{begun.path} (an upload)", str(begun.path)
    return Left(*where, 0, begun.nbytes, failed, failed=failed is not None)
