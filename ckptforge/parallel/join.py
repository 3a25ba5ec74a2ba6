"""Sharded checkpoints: rank directories and their strategy, as one set of full tensors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ckptforge.boxes import Box, full_box
from ckptforge.checkpoints.duplicates import same_bytes
from ckptforge.composing import value_of_parts
from ckptforge.covering import box_text, uncovered
from ckptforge.errors import FormatError, shown
from ckptforge.formats.index import FileIndex
from ckptforge.model import IN_RANKS, Account, Model
from ckptforge.parallel.strategy_files import Strategy
from ckptforge.values import Stored, Value, value_of
from ckptforge.wording import counted, listing

_log = logging.getLogger(__name__)


def join_ranks(
    directory: Path,
    ranks: tuple[list[FileIndex], list[str]],
    strategy: Strategy,
    check_replicas: bool = False,
) -> Model:
    """The files of ranks, and notes about their choice, as one set of full tensors under the
    strategy that they were made under.

    Of replicas the lowest rank's is read; a rank may lack a replica (redundancy removed), if some
    rank has each part. `check_replicas` compares all of them. Tensors that the strategy doesn't
    know must be the same on all ranks. Raises `InputNotFoundError` for missing ranks, `FormatError`
    for whatever shows that strategy and shards don't belong together, with the shapes.
    """
    files, notes = ranks[0], [*ranks[1]]
    if len(files) != strategy.ranks:
        raise FormatError(
            f"{directory}: holds {counted(len(files), 'rank')}, but {strategy.path} is of a job "
            f"with {strategy.ranks} ({counted(len(strategy.stages), 'stage')} of "
            f"{counted(strategy.devices, 'device')}); it isn't the strategy of these shards."
        )
    values: dict[str, Value] = {}
    for name in _order(files, strategy):
        stage = strategy.first_stage(name)
        if stage is None:
            values[name] = _common(directory, name, files, strategy)
        else:
            values[name] = _sharded(directory, name, stage, files, strategy, check_replicas)
    notes += _once([note for file in files for note in file.notes], len(files))
    kind = f"{files[0].format}{IN_RANKS}"
    tensors, ranks_read = counted(len(values), "tensor"), counted(len(files), "rank")
    extent = f"{tensors} in {ranks_read}, {counted(len(strategy.stages), 'stage')}"
    _log.info("opened %s: %s, %s, sharding from %s", directory, kind, extent, strategy.path)
    return Model(
        path=directory,
        format=kind,
        directory=directory,
        files=tuple(files),
        values=values,
        account=Account().noting(*notes),
        ranks=len(files),
    )


def _once(notes: list[str], ranks: int) -> list[str]:
    """The notes of the first file that has any, for all: those of a job's ranks are alike."""
    first = [note for note in notes if note.partition(": ")[0] == notes[0].partition(": ")[0]]
    if len(first) == len(notes):
        return first
    more = counted(len(notes) - len(first), "such note")
    return [*first, f"{more} more, of the files of {counted(ranks, 'rank')}."]


def _order(files: Sequence[FileIndex], strategy: Strategy) -> list[str]:
    """As MindSpore's transform_checkpoints orders them: the strategy's tensors as they first
    appear, from the highest rank down, then the others."""
    names = dict.fromkeys(name for file in reversed(files) for name in file.tensors)
    return sorted(names, key=lambda name: strategy.first_stage(name) is None)


def _common(directory: Path, name: str, files: Sequence[FileIndex], strategy: Strategy) -> Value:
    """A tensor of no strategy, such as a step counter: the same on every rank that has it."""
    holders = [file.tensors[name] for file in files if name in file.tensors]
    first = holders[0]
    for other in holders[1:]:
        if (other.dtype, other.shape) != (first.dtype, first.shape) or not same_bytes(first, other):
            raise FormatError(
                f"{directory}: {shown(name)} isn't in the strategy {strategy.path}, so every rank "
                f"must hold the same, but {first.path} ({first.dtype} {list(first.shape)}) and "
                f"{other.path} ({other.dtype} {list(other.shape)}) differ; it isn't the strategy "
                "of these shards, or not all of it."
            )
    return value_of(first)


def _sharded(
    directory: Path,
    name: str,
    stage: int,
    files: Sequence[FileIndex],
    strategy: Strategy,
    check_replicas: bool,
) -> Value:
    layout = strategy.stages[stage][name]
    of_stage = files[stage * strategy.devices : (stage + 1) * strategy.devices]
    by_device = {device: file.tensors.get(name) for device, file in enumerate(of_stage)}
    present = {device: entry for device, entry in by_device.items() if entry is not None}
    if not present:
        elsewhere = next(file.path for file in files if name in file.tensors)
        raise FormatError(
            f"{directory}: {shown(name)} belongs to stage {stage} by {strategy.path}, but only "
            f"ranks of others hold it ({elsewhere})."
        )
    first = next(iter(present.values()))
    for entry in present.values():
        if (entry.dtype, entry.shape) != (first.dtype, first.shape):
            raise FormatError(
                f"{entry.path}: {shown(name)} is {entry.dtype} {list(entry.shape)}, but "
                f"{first.dtype} {list(first.shape)} in {first.path}; the ranks of a job have equal "
                "parts."
            )
    full = layout.shape_of_whole(first.shape)
    if full is None or (layout.full_shape is not None and full != layout.full_shape):
        expected: object = layout.full_shape
        if full is None:
            expected = counted(len(layout.tensor_map), "axis")
        raise FormatError(
            f"{first.path}: {shown(name)} has shape {list(first.shape)}"
            + (f", which {strategy.path} makes {list(full)} in all" if full is not None else "")
            + f"; the strategy says {expected}. It isn't the strategy of these shards."
        )
    chosen: dict[Box, Stored] = {}
    for device, entry in present.items():
        box = layout.box(full, device)
        kept = chosen.setdefault(box, entry)
        if check_replicas and kept is not entry and not same_bytes(kept, entry):
            raise FormatError(
                f"{entry.path}: {shown(name)} differs from its replica in {kept.path}."
            )
    if wrong := uncovered(full_box(full), list(chosen)):
        devices = (device for device, entry in by_device.items() if entry is None)
        lacking = [str(of_stage[device].path) for device in devices]
        raise FormatError(
            f"{directory}: no rank holds part {box_text(wrong[1])} of {shown(name)} {list(full)}"
            + (
                f"; these lack the tensor:\n{listing(lacking)}"
                if lacking
                else "; it isn't the strategy of these shards."
            )
        )
    return value_of_parts(full, chosen)
