"""The options of every verb, written once: a record for each verb, from which come its signature in
Python, its command line, its help and its JSON schema."""

from __future__ import annotations

from ckptforge.verbs.options.looking import (
    Check,
    Clean,
    Compare,
    Finish,
    Inspect,
    MappingCheck,
    MappingShow,
    Verify,
)
from ckptforge.verbs.options.opening import Open, Save
from ckptforge.verbs.options.option import PathLike, Progress, Say
from ckptforge.verbs.options.record import Options
from ckptforge.verbs.options.shared import Converting, Overflow, Parted, Resharding, Running
from ckptforge.verbs.options.surgery import Average, Edit, Extract, Stats
from ckptforge.verbs.options.writing import Convert, Merge, Reshard, Split, Strategy, ToMs, ToTorch

__all__ = [
    "Average",
    "Check",
    "Clean",
    "Compare",
    "Convert",
    "Converting",
    "Edit",
    "Extract",
    "Finish",
    "Inspect",
    "MappingCheck",
    "MappingShow",
    "Merge",
    "Open",
    "Options",
    "Overflow",
    "Parted",
    "PathLike",
    "Progress",
    "Reshard",
    "Resharding",
    "Running",
    "Save",
    "Say",
    "Split",
    "Stats",
    "Strategy",
    "ToMs",
    "ToTorch",
    "Verify",
]
