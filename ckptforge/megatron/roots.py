"""Which iteration of a run of Megatron's is meant."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ckptforge.checkpoints.iterations import iteration_in, refuse_other_step, tracked
from ckptforge.checkpoints.kinds import check_step
from ckptforge.errors import InputNotFoundError
from ckptforge.foreign.files import entries_of, is_there, read_small
from ckptforge.foreign.paths import has_name, is_directory
from ckptforge.megatron.names import (
    CHUNKS,
    DESCRIBED,
    FILE,
    MAX_DESCRIBED,
    SHARDED,
    TRACKER,
    iteration_name,
    iteration_of,
    numbers_of,
)


class MegatronIteration(msgspec.Struct, frozen=True, kw_only=True):
    """The directory of an iteration, those of its ranks (none where it is one checkpoint of
    torch.distributed.checkpoint), its number where its name says it, and sentences about the
    choice."""

    directory: Path
    ranks: tuple[Path, ...]
    number: int | None = None
    notes: tuple[str, ...] = ()


def is_megatron(directory: Path) -> bool:
    """Whether a directory is the root of a run or an iteration, by the names in it."""
    entries = entries_of(directory)
    names = {entry.name for entry in entries}
    if any(numbers_of(name) is not None for name in names) or _is_described(directory):
        return True
    return any(_is_iteration(entry) for entry in entries if iteration_of(entry.name) is not None)


def _is_iteration(directory: Path) -> bool:
    return is_directory(directory) and bool(_is_described(directory) or _of_ranks(directory))


def _is_described(directory: Path) -> bool:
    return _is_chunks(directory) or is_fsdp(directory)


def is_fsdp(directory: Path) -> bool:
    """Whether it is an iteration whose chunks only torch.distributed.checkpoint describes."""
    if iteration_of(directory.name) is None or not has_name(directory / CHUNKS):
        return False
    return not has_name(directory / DESCRIBED)


def _is_chunks(directory: Path) -> bool:
    """Whether it is an iteration of Megatron-core's `torch_dist`, by what describes it."""
    described = directory / DESCRIBED
    if not (has_name(directory / CHUNKS) and has_name(described)):
        return False
    content = read_small(described, MAX_DESCRIBED) if is_there(described) else b""
    return b"sharded_backend" in content


def _of_ranks(directory: Path) -> tuple[Path, ...]:
    if not is_directory(directory):
        return ()
    named = (entry for entry in entries_of(directory) if numbers_of(entry.name) is not None)
    return tuple(entry for entry in named if is_there(entry / FILE))


def find_iteration(directory: Path, step: int | None) -> MegatronIteration:
    """The iteration that a directory is, or that of its iterations which is wanted: that of the
    tracker, else the highest.

    Raises `InputNotFoundError` for one that isn't there, `FormatError` for a tracker that holds
    something else, and `UsageError` for a step that none can be.
    """
    check_step(step)
    ranks = _of_ranks(directory)
    if ranks or _is_described(directory):
        number = iteration_of(directory.name)
        refuse_other_step(directory, number, step)
        return MegatronIteration(directory=directory, ranks=ranks, number=number)
    there = {
        number: entry
        for entry in entries_of(directory)
        if (number := iteration_of(entry.name)) is not None and _is_iteration(entry)
    }
    if not there:
        raise InputNotFoundError(
            f"{directory}: no rank's directory holds {FILE}, expected mp_rank_<n>/{FILE}, or "
            f"{CHUNKS} and {DESCRIBED} of {SHARDED}, or {CHUNKS} in {iteration_name(1)}."
        )
    wanted = tracked(directory / TRACKER, {"release": -1}) if step is None else step
    notes: tuple[str, ...] = ()
    if wanted is None:
        wanted = max(there)
        notes = (
            f"{directory}: holds no {TRACKER}; the highest iteration is taken, "
            f"{there[wanted].name}, and may be unfinished.",
        )
    chosen = iteration_in(directory, there, wanted, TRACKER if step is None else None)
    return MegatronIteration(directory=chosen, ranks=_of_ranks(chosen), number=wanted, notes=notes)
