"""Outputs in the making: the name of their directory, from which nobody reads."""

from __future__ import annotations

from pathlib import Path

from ckptforge.errors import InputNotFoundError
from ckptforge.spelling import command, flag
from ckptforge.storage.mounts import absolute

SUFFIX = ".ckptforge"  # `.NAME.ckptforge` holds the unfinished output NAME


def refuse_unfinished(path: Path) -> None:
    """Raises `InputNotFoundError` for a path in what a run is making, or left behind."""
    for part in absolute(path).parts:
        if part.startswith(".") and part.endswith(SUFFIX) and len(part) > len(SUFFIX) + 1:
            raise InputNotFoundError(
                f"{path}: is the unfinished output of a run, in {part}; finish it with "
                f"{flag('resume')}, or remove it with {command('clean')}."
            )
