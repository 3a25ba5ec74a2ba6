"""Which iteration of a training run is meant: the one that the tracker names, or another that is
there."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from ckptforge.checkpoints.kinds import check_step
from ckptforge.errors import FormatError, InputNotFoundError, shown
from ckptforge.foreign.files import entries_of, is_there, read_small
from ckptforge.foreign.paths import is_directory
from ckptforge.mindformers.names import TRACKER, iteration_number, parts_among
from ckptforge.spelling import option
from ckptforge.wording import listing

_INDEX = "model.safetensors.index.json"  # a directory that has one is Hugging Face's
_MEGATRON = re.compile(r"iter_[0-9]{7}")  # whose roots have a tracker of the same name


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
        if step not in (None, number):
            raise InputNotFoundError(
                f"{directory}: is one iteration, where there is no step to choose: omit "
                f"{option('step', step)}, or name the directory above it."
            )
        return Iteration(directory, number)
    there = {
        number: entry
        for entry in entries_of(directory)
        if (number := iteration_number(entry.name)) is not None and is_directory(entry)
    }
    if not there:
        raise InputNotFoundError(f"{directory}: holds {TRACKER}, but no iteration_<n>/.")
    tracked = _tracked(directory / TRACKER)
    wanted = tracked if step is None else step
    if wanted is None:
        wanted = max(there)
        note = (
            f"{directory}: holds no {TRACKER}, which MindFormers writes last; the highest "
            f"iteration is taken, {there[wanted].name}, and may be unfinished."
        )
        return Iteration(there[wanted], wanted, (note,))
    if wanted not in there:
        whose = f"{TRACKER} names iteration" if step is None else "the step asked for is"
        raise InputNotFoundError(
            f"{directory}: {whose} {wanted}, which isn't there. Choose one of these with "
            f"{option('step')}:\n{listing([there[number].name for number in sorted(there)])}"
        )
    return Iteration(there[wanted], wanted, _doubts(directory, there, tracked, wanted))


def _doubts(
    directory: Path, there: dict[int, Path], tracked: int | None, wanted: int
) -> tuple[str, ...]:
    """Sentences about iterations that may be unfinished."""
    if tracked is None:
        return ()
    newest = max(there)
    if wanted > tracked:
        return (
            f"{there[wanted]}: is newer than what {TRACKER} names, iteration {tracked}; it may be "
            "unfinished.",
        )
    if newest <= tracked:
        return ()
    return (
        f"{directory}: {there[newest].name} is newer than what {TRACKER} names and may be "
        f"unfinished; iteration {wanted} is taken ({option('step')} picks another).",
    )


def _tracked(path: Path) -> int | None:
    """The iteration that the tracker names; None where there is no tracker."""
    if not is_there(path):
        return None
    text = read_small(path, 4096).decode("utf-8", "replace").strip()
    if not re.fullmatch("[0-9]{1,18}", text):
        raise FormatError(
            f"{path}: holds {shown(text[:80])}, expected the number of the last iteration. Choose "
            f"one with {option('step')}, or name its directory."
        )
    return int(text)
