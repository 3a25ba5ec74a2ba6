"""Opening what a user names: a file or a directory, in whichever format, as one set of tensors."""

from __future__ import annotations

import logging
from pathlib import Path

from ckptforge.checkpoints import huggingface
from ckptforge.checkpoints import mindspore as mindspore_dir
from ckptforge.checkpoints.files import read_file
from ckptforge.checkpoints.unfinished import refuse_unfinished
from ckptforge.checkpoints.whereabouts import (
    explain_missing,
    refuse_newer_mindformers,
    refuse_weightless,
)
from ckptforge.errors import FormatError, InputNotFoundError, counted
from ckptforge.formats.index import FileIndex
from ckptforge.model import Account, Model
from ckptforge.spelling import option
from ckptforge.storage.files import is_directory
from ckptforge.storage.mounts import store_of
from ckptforge.storage.small_files import entries_of, is_there, named
from ckptforge.storage.store import Kind
from ckptforge.values import value_of

CONFIG = "config.json"
_log = logging.getLogger(__name__)


def open_checkpoint(path: Path, step: int | None = None) -> Model:
    """Opens a Hugging Face directory, a `.ckpt` or `.safetensors` file, or a directory with one of
    them.

    `step` picks one of several checkpoints in a directory. Reads indexes only. Raises
    `InputNotFoundError` and `FormatError`, and `UsageError` for a negative step.
    """
    mindspore_dir.check_step(step)
    refuse_unfinished(path)
    try:
        kind = store_of(path).status(path).kind
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputNotFoundError(f"{path}: {reason}.{explain_missing(path)}") from error
    if kind is not Kind.DIRECTORY:
        if kind is not Kind.FILE:
            raise InputNotFoundError(f"{path}: is neither a file nor a directory.")
        mindspore_dir.refuse_step(step, path, "one file")
        shard = huggingface.shard_of(path)
        return _collect(
            path,
            [read_file(path)],
            path.parent,
            [f"{path}: {shard}."] if shard else [],
        )
    try:
        return _open_directory(path, step)
    except OSError as error:
        raise InputNotFoundError(f"{path}: can't be read: {error.strerror}.") from error


def _open_directory(directory: Path, step: int | None) -> Model:
    if not entries_of(directory):
        raise InputNotFoundError(f"{directory}: the directory is empty.")
    if mindspore_dir.is_unified(directory):
        mindspore_dir.refuse_step(step, directory, "a directory of unified safetensors")
        return _collect(directory, mindspore_dir.read_unified(directory), directory)
    refuse_newer_mindformers(directory)
    refuse_weightless(directory)
    ranks = mindspore_dir.rank_directories(directory)
    if ranks:
        if list(ranks) != [0]:
            held = counted(len(ranks), "rank directory")
            raise FormatError(
                f"{directory}: holds {held}, the shards of one model; give the strategy of their "
                "job with "
                f"{option('strategy_dir')}, or name the directory of one rank if each holds the "
                "whole model."
            )
        chosen, note = mindspore_dir.choose_checkpoint(ranks[0], step)
        return _collect(
            directory,
            [read_file(chosen)],
            directory,
            [note] if note else [],
            len(ranks),
        )
    if _looks_hugging_face(directory):
        mindspore_dir.refuse_step(step, directory, "a Hugging Face directory")
        return _collect(directory, huggingface.read_directory(directory), directory)
    chosen, note = mindspore_dir.choose_checkpoint(directory, step)
    return _collect(directory, [read_file(chosen)], directory, [note] if note else [])


def _looks_hugging_face(directory: Path) -> bool:
    """Shards with an index or a config.json beside them; or several safetensors that aren't the
    steps of a training job."""
    if is_there(directory / huggingface.SINGLE) or is_there(directory / huggingface.INDEX):
        return True  # whatever else lies there
    if named(directory, ".ckpt"):
        return False
    paths = named(directory, ".safetensors")
    return (
        is_there(directory / CONFIG)
        or bool(named(directory, ".safetensors.index.json"))
        or any(path.name.startswith("model") for path in paths)
        or not paths
    )


def _collect(
    path: Path,
    files: list[FileIndex],
    directory: Path,
    notes: list[str] | None = None,
    ranks: int = 0,
) -> Model:
    values = {name: value_of(stored) for file in files for name, stored in file.tensors.items()}
    if not values:
        raise FormatError(f"{path}: holds no tensors.")
    hugging_face = is_directory(path) and files[0].format == "safetensors"
    found = Model(
        path=path,
        format="hugging face directory" if hugging_face else files[0].format,
        directory=directory,
        files=tuple(files),
        values=values,
        account=Account().noting(*(notes or []), *(note for file in files for note in file.notes)),
        ranks=ranks,
    )
    _log.info(
        "opened %s: %s, %s in %s, %s bytes",
        path,
        found.format,
        counted(len(values), "tensor"),
        counted(len(files), "file"),
        f"{found.nbytes:,}",
    )
    return found
