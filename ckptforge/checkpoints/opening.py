"""Opening what a user names: a file or a directory, in whichever format, as one set of tensors."""

from __future__ import annotations

from pathlib import Path

from ckptforge.checkpoints.files import model_of, read_file
from ckptforge.checkpoints.huggingface import shard_of
from ckptforge.checkpoints.kinds import KINDS, check_step, refuse_step
from ckptforge.checkpoints.unfinished import refuse_unfinished
from ckptforge.checkpoints.whereabouts import explain_missing, no_weights
from ckptforge.errors import InputNotFoundError
from ckptforge.foreign.files import entries_of
from ckptforge.model import Model
from ckptforge.storage.mounts import store_of
from ckptforge.storage.store import Kind


def open_checkpoint(
    path: Path, step: int | None = None, check_replicas: bool | None = False
) -> Model:
    """Opens a file of tensors, or a directory of any kind.

    `step` picks one of several checkpoints in a directory, `check_replicas` has all copies of what
    several ranks hold compared. Reads indexes only. Raises `InputNotFoundError` and `FormatError`,
    and `UsageError` for a negative step.
    """
    check_step(step)
    refuse_unfinished(path)
    try:
        kind = store_of(path).status(path).kind
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        missing = not isinstance(error, OSError) or isinstance(error, FileNotFoundError)
        advice = explain_missing(path) if missing else ""
        raise InputNotFoundError(f"{path}: {reason}.{advice}") from error
    if kind is Kind.DIRECTORY:
        try:
            return _open_directory(path, step, check_replicas)
        except OSError as error:
            raise InputNotFoundError(f"{path}: can't be read: {error.strerror}.") from error
    if kind is not Kind.FILE:
        raise InputNotFoundError(f"{path}: is neither a file nor a directory.")
    refuse_step(step, path, "one file")
    shard = shard_of(path)
    return model_of(path, [read_file(path)], *([f"{path}: {shard}."] if shard else []))


def _open_directory(directory: Path, step: int | None, check_replicas: bool | None) -> Model:
    if not entries_of(directory):
        raise InputNotFoundError(f"{directory}: the directory is empty.")
    kind = next((kind for kind in KINDS if kind.recognises(directory)), None)
    if kind is None:
        raise no_weights(directory)
    return kind.open(directory, step, check_replicas)
