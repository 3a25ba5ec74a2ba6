"""The kinds of directories that hold a checkpoint, each an object with the members of
`DirectoryKind`.

The first that recognises a directory opens it: those that are known by a file or a directory of a
fixed name come first, then what other packages announce by entry points of the group
`ckptforge.checkpoints` or a program by `KINDS.registered(…)`, then those that are known by less.
`ckptforge.testing.checkpoints` tests one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ckptforge.errors import InputNotFoundError, UsageError
from ckptforge.model import Model
from ckptforge.registry import Registry
from ckptforge.spelling import option


class DirectoryKind(Protocol):
    """One way in which the tensors of a model lie in a directory."""

    def recognises(self, directory: Path) -> bool:
        """Whether a directory, which isn't empty, is of this kind, by the names in it."""

    def open(self, directory: Path, step: int | None, check_replicas: bool | None = False) -> Model:
        """Its tensors, of which only indexes are read; `step` picks one of several checkpoints,
        `check_replicas` asks that all copies of what several ranks hold be compared, None that none
        be; else a sample is.

        Raises `InputNotFoundError` for what is missing, and for a step where there is none to
        choose (`refuse_step`), and `FormatError` for what isn't right.
        """


KINDS: Registry[DirectoryKind] = Registry(
    "ckptforge.checkpoints",
    "ckptforge.checkpoints.mindspore:UNIFIED",
    "ckptforge.megatron.kind:MEGATRON",
    "ckptforge.mindformers.kind:ITERATIONS",
    "ckptforge.checkpoints.mindspore:ONE_RANK",
    "ckptforge.checkpoints.huggingface:BY_FIXED_NAME",
    "ckptforge.torch_files.kind:TORCH_DIRECTORY",
    "ckptforge.torch_files.distributed:DISTRIBUTED_CHECKPOINT",
    "ckptforge.torch_files.fsdp:FSDP_RANKS",
    "ckptforge.torch_files.hub_shards:HUB_SHARDS",
    "ckptforge.consolidated.kind:CONSOLIDATED",
    "ckptforge.adapters.peft:PEFT_ADAPTER",
    last=(
        "ckptforge.checkpoints.huggingface:BY_OTHER_NAMES",
        "ckptforge.checkpoints.mindspore:ONE_FILE",
    ),
)


def check_step(step: int | None) -> None:
    """Raises `UsageError` for a step that none can be."""
    if step is not None and (not isinstance(step, int) or isinstance(step, bool) or step < 0):
        raise UsageError(
            f"{option('step', step)}: expected the number of a training step, which isn't negative."
        )


def refuse_step(step: int | None, path: Path, what: str) -> None:
    """Raises `InputNotFoundError` where a step is named of something that holds only one."""
    check_step(step)
    if step is not None:
        raise InputNotFoundError(
            f"{path}: is {what}, where there is no step to choose: omit {option('step', step)}, or "
            "name the directory that holds the checkpoints of several steps."
        )
