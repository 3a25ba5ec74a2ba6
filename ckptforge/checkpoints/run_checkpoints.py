"""The checkpoints that a training run has left beside each other, by their steps."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from ckptforge.checkpoints.files import of_a_format
from ckptforge.checkpoints.mindspore import rank_directories, step_of
from ckptforge.errors import InputNotFoundError, UsageError
from ckptforge.foreign.files import entries_of
from ckptforge.foreign.paths import is_directory, is_file
from ckptforge.spelling import option
from ckptforge.wording import counted, listing

# iteration_00001000 of MindFormers, checkpoint-1000 of transformers' Trainer, iter_0001000,
# global_step1000, step-1000
_DIRECTORY = re.compile(r"(?:iteration_|checkpoint-|iter_|global_step_?|step[-_]?)([0-9]{1,15})")


class RunCheckpoint(msgspec.Struct, frozen=True, order=True):
    """One checkpoint of a run: its step, the path to open, and the step to choose there; None where
    the path is that checkpoint alone."""

    step: int
    path: Path
    chosen: int | None


def checkpoints_of(root: Path) -> list[RunCheckpoint]:
    """The checkpoints in the root of a run, the oldest first: directories named after their steps,
    or files of MindSpore's `…-<epoch>_<step>`, also in rank directories. Raises
    `InputNotFoundError` where there are none."""
    if not is_directory(root):
        raise InputNotFoundError(f"{root}: isn't a directory with the checkpoints of a run.")
    named = [
        RunCheckpoint(int(match[1]), entry, None)
        for entry in entries_of(root)
        if (match := _DIRECTORY.fullmatch(entry.name)) and is_directory(entry)
    ]
    if named:
        return sorted(named)
    ranks = rank_directories(root)
    held = next(iter(ranks.values()), root)
    steps = {step_of(path) for path in of_a_format(filter(is_file, entries_of(held)))}
    found = sorted(step for step in steps if step is not None)
    if not found:
        raise InputNotFoundError(
            f"{root}: holds no checkpoints of several steps: directories such as "
            "iteration_00001000 or checkpoint-1000, or files whose names end in -<epoch>_<step>."
        )
    return [RunCheckpoint(step, root, step) for step in found]


def last_of(root: Path, count: int) -> list[RunCheckpoint]:
    """The last `count` checkpoints of a run, the oldest first. Raises `UsageError` for a count
    below 1, and `InputNotFoundError` where there are fewer."""
    if count < 1:
        raise UsageError(f"{option('last', count)}: expected 1 or more.")
    found = checkpoints_of(root)
    if len(found) < count:
        there = listing([f"step {one.step}" for one in found])
        raise InputNotFoundError(
            f"{root}: {option('last', count)} needs {counted(count, 'checkpoint')}; these are "
            f"there:\n{there}"
        )
    return found[-count:]
