"""What the options of a verb say of an input, as reading knows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptforge.errors import UsageError
from ckptforge.reading.known import Choices
from ckptforge.run.budget import Budget
from ckptforge.spelling import option
from ckptforge.storage.direct import DIRECT_DISK
from ckptforge.storage.local import DISK
from ckptforge.storage.store import Store
from ckptforge.targets.huggingface import parse_size
from ckptforge.verbs.options import Options
from ckptforge.verbs.options.shared import Workers

# What an option is called elsewhere → what a verb calls it.
Names = Mapping[str, str]
_OF_EVERY_INPUT = ("model", "mapping", "config", "step", "trim_vocab")
_OF_ONE = ("layout", "strategy_dir", "parallel_config")
ONLY: Names = {name: name for name in _OF_ONE}
SOURCE: Names = {**{name: f"src_{name}" for name in _OF_ONE}, "layout": "from_"}
SIDE_A: Names = {name: f"{name}_a" for name in _OF_ONE}
SIDE_B: Names = {name: f"{name}_b" for name in _OF_ONE}


def choices_of(options: Options, names: Names = ONLY, **more: Any) -> Choices:
    """What options say of an input, of those that they have; `names` are those of the options that
    a verb has for each input, none where they are those of its output."""
    given = vars(options)
    named = {field: given[name] for field, name in names.items() if name in given}
    shared = {name: given[name] for name in _OF_EVERY_INPUT if name in given}
    return Choices(**{**shared, **named, **more})


def budget_of(options: Workers) -> Budget:
    """How many work, in how much memory. Raises `UsageError`."""
    return Budget.of(options.workers, parse_size(options.memory, "memory"))


def disk_of(io: str) -> Store:
    """How this machine's disks are read and written, by the word for it. Raises `UsageError`."""
    if io == "buffered":
        return DISK
    if io == "direct":
        return DIRECT_DISK
    raise UsageError(f"{option('io', io)}: expected buffered or direct.")
