"""The iterations of a training run: directories beside each other, and a small file, the tracker,
that names the last of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ckptforge.errors import FormatError, InputNotFoundError, UsageError, shown
from ckptforge.foreign.files import is_there, read_small
from ckptforge.spelling import option
from ckptforge.wording import listing

_MAX_TRACKER = 4096  # bytes


def check_iteration(number: int | None, most: int) -> None:
    """Raises `UsageError` for a number that no iteration that is written can have."""
    if number is not None and not 0 <= number <= most:
        raise UsageError(
            f"{option('iteration', number)}: expected the number of a training step, from 0 to "
            f"{most}."
        )


def refuse_other_step(directory: Path, number: int | None, step: int | None) -> None:
    """Raises `InputNotFoundError` for a step that isn't the number of the iteration that a
    directory is."""
    if step not in (None, number):
        raise InputNotFoundError(
            f"{directory}: is one iteration, where there is no step to choose: omit "
            f"{option('step', step)}, or name the directory above it."
        )


def iteration_in(
    directory: Path, there: Mapping[int, Path], wanted: int, tracker: str | None
) -> Path:
    """The iteration of a number among those of a run; `tracker` is the name of the file that says
    the number, None where a user did. Raises `InputNotFoundError`, with those that there are."""
    if wanted not in there:
        whose = "the step asked for is" if tracker is None else f"{tracker} names iteration"
        raise InputNotFoundError(
            f"{directory}: {whose} {wanted}, which isn't there. Choose one of these with "
            f"{option('step')}:\n{listing([there[number].name for number in sorted(there)])}"
        )
    return there[wanted]


def tracked(path: Path, words: Mapping[str, int]) -> int | None:
    """The iteration that a tracker names, by its number or one of some `words`; None where there is
    no tracker. Raises `FormatError` for one that holds something else."""
    if not is_there(path):
        return None
    text = read_small(path, _MAX_TRACKER).decode("utf-8", "replace").strip()
    if text in words:
        return words[text]
    if not re.fullmatch("[0-9]{1,18}", text):
        expected = ", or ".join(("the number of the last iteration", *words))
        raise FormatError(
            f"{path}: holds {shown(text[:80])}, expected {expected}. Choose one with "
            f"{option('step')}, or name its directory."
        )
    return int(text)
