"""Which iteration of a training run is meant: the one that the tracker names, or another that is
there."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from ckptforge.checkpoints.iterations import iteration_in, refuse_other_step, tracked
from ckptforge.checkpoints.kinds import check_step
from ckptforge.errors import InputNotFoundError
from ckptforge.foreign.files import entries_of
from ckptforge.foreign.paths import is_directory
from ckptforge.mindformers.names import TRACKER, iteration_number, parts_among
from ckptforge.spelling import option

_INDEX = "model.safetensors.index.json"  # a directory that has one is Hugging Face's
_MEGATRON = re.compile(r"iter_[0-9]{7,12}|release")  # whose roots have a tracker of the same name


class Iteration(msgspec.Struct, frozen=True):
    """The directory of an iteration, its number where its name says it, and sentences about the
    choice."""

    directory: Path
    number: int | None
    notes: tuple[str, ...] = ()


def is_iteration(directory: Path) -> bool:
    """Whether files of tensors of one iteration lie in a directory."""
    return bool(parts_among(entries_of(directory)))


def is_root(directory: Path) -> bool:
    """Whether a directory is the root of a run: with iterations, or with the tracker."""
    entries = entries_of(directory)
    names = {entry.name for entry in entries}
    if _INDEX in names:
        return False
    if any(iteration_number(entry.name) is not None and is_directory(entry) for entry in entries):
        return True
    return TRACKER in names and not any(map(_MEGATRON.fullmatch, names))


def find_iteration(directory: Path, step: int | None) -> Iteration:
    """The iteration that a directory is, or that of its iterations which is wanted.

    Raises `InputNotFoundError` for one that isn't there, `FormatError` for a tracker that holds
    something else than a number, and `UsageError` for a step that none can be.
    """
    check_step(step)
    if not is_root(directory):
        number = iteration_number(directory.name)
        refuse_other_step(directory, number, step)
        return Iteration(directory, number)
    there = {
        number: entry
        for entry in entries_of(directory)
        if (number := iteration_number(entry.name)) is not None and is_directory(entry)
    }
    if not there:
        raise InputNotFoundError(f"{directory}: holds {TRACKER}, but no iteration_<n>/.")
    last = tracked(directory / TRACKER, {})
    wanted = last if step is None else step
    if wanted is None:
        wanted = max(there)
        note = (
            f"{directory}: holds no {TRACKER}, which MindFormers writes last; the highest "
            f"iteration is taken, {there[wanted].name}, and may be unfinished."
        )
        return Iteration(there[wanted], wanted, (note,))
    chosen = iteration_in(directory, there, wanted, TRACKER if step is None else None)
    return Iteration(chosen, wanted, _doubts(directory, there, last, wanted))


def _doubts(
    directory: Path, there: dict[int, Path], last: int | None, wanted: int
) -> tuple[str, ...]:
    """Sentences about iterations that may be unfinished."""
    if last is None:
        return ()
    newest = max(there)
    if wanted > last:
        return (
            f"{there[wanted]}: is newer than what {TRACKER} names, iteration {last}; it may be "
            "unfinished.",
        )
    if newest <= last:
        return ()
    return (
        f"{directory}: {there[newest].name} is newer than what {TRACKER} names and may be "
        f"unfinished; iteration {wanted} is taken ({option('step')} picks another).",
    )
