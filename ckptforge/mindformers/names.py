"""How the files and directories of a checkpoint are called.

Source: MindFormers r1.7 … r2.1, `mindformers/checkpoint/utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

TRACKER = "latest_checkpointed_iteration.txt"
METADATA = "metadata.json"
COMMON = "common.json"
MODEL, OPTIMIZER = "model", "opt"
MAX_ITERATION = 10**18 - 1
_ITERATION = re.compile(r"iteration_([0-9]{1,18})")
_PART = re.compile(r"(?:(.+)-)?(model|opt)-([0-9]{7})-([0-9]{7})\.safetensors", re.DOTALL)


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A file of tensors by its name: `kind` is `model` or `opt`, `index` counts the files of its
    kind, of which there are `count`. Where redundancy was removed the index isn't the rank."""

    name: str
    prefix: str
    kind: str
    index: int
    count: int


def part_of(name: str) -> Part | None:
    """What the name of a file says; None for the name of another file."""
    if (match := _PART.fullmatch(name)) is None:
        return None
    prefix, kind, index, count = match.groups()
    return Part(name=name, prefix=prefix or "", kind=kind, index=int(index), count=int(count))


def part_name(prefix: str, kind: str, index: int, count: int) -> str:
    """The name of file number `index` of `count`."""
    start = f"{prefix}-" if prefix else ""
    return f"{start}{kind}-{index:07d}-{count:07d}.safetensors"


def iteration_name(number: int) -> str:
    """The name of the directory of an iteration."""
    return f"iteration_{number:08d}"


def iteration_number(name: str) -> int | None:
    """The number in the name of an iteration's directory; None for another name."""
    match = _ITERATION.fullmatch(name)
    return int(match[1]) if match else None


def parts_among(entries: Iterable[Path]) -> list[Part]:
    """The files of tensors among some paths: those of the model first, each kind by number."""
    found = [part for entry in entries if (part := part_of(entry.name)) is not None]
    return sorted(found, key=lambda part: (part.kind, part.prefix, part.count, part.index))
