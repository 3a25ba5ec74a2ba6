"""Sharded checkpoints: rank directories and their strategy, as one set of full tensors."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from ckptforge.boxes import Box, full_box
from ckptforge.checkpoints.duplicates import first_other
from ckptforge.checkpoints.replicas import Replicas
from ckptforge.composing import value_of_parts
from ckptforge.covering import box_text, uncovered
from ckptforge.errors import FormatError, shown
from ckptforge.formats.index import FileIndex
from ckptforge.model import IN_RANKS, Account, Held, Model
from ckptforge.parallel.device_layout import DeviceLayout
from ckptforge.parallel.strategy_files import Strategy
from ckptforge.tables.skeletons import skeleton_of
from ckptforge.values import Stored, Value, value_of
from ckptforge.wording import counted, listing

_log = logging.getLogger(__name__)


def join_ranks(
    directory: Path,
    ranks: tuple[list[FileIndex], list[str]],
    strategy: Strategy,
    check_replicas: bool | None = False,
) -> Model:
    """The files of ranks, and notes about their choice, as one set of full tensors under the
    strategy that they were made under.

    Of replicas the lowest rank's is read; a rank may lack a replica (redundancy removed), if some
    rank has each part. `check_replicas` compares all of them, None none, else a sample. Tensors
    that the strategy doesn't know must be the same on all ranks. Raises `InputNotFoundError` for
    missing ranks, `FormatError` for whatever shows that strategy and shards don't belong together,
    with the shapes.
    """
    files, notes = ranks[0], [*ranks[1]]
    if len(files) != strategy.ranks:
        raise FormatError(
            f"{directory}: holds {counted(len(files), 'rank')}, but {strategy.path} is of a job "
            f"with {strategy.ranks} ({counted(len(strategy.stages), 'stage')} of "
            f"{counted(strategy.devices, 'device')}); it isn't the strategy of these shards."
        )
    held = _Ranks(directory, files, strategy, Replicas(check_replicas))
    values = {name: held.value(name) for name in _order(files, strategy)}
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
        held=partial(held_by_ranks, values, strategy),
    )


def held_by_ranks(values: Mapping[str, Value], strategy: Strategy) -> Iterator[Held]:
    """Which box of each kind of tensor the ranks of a job hold; of those that no stage has, the
    whole."""
    kinds: dict[tuple[Any, ...], list[str]] = {}
    for name, value in values.items():
        stage = strategy.first_stage(name)
        layout = strategy.stages[stage][name] if stage is not None else None
        key = skeleton_of(name)[0], value.dtype, value.shape, stage, layout
        kinds.setdefault(key, []).append(name)
    by_stage = sorted(kinds.items(), key=lambda kind: (kind[0][3] is None, kind[0][3] or 0))
    for (_, _, shape, stage, layout), names in by_stage:
        ranks = range(strategy.ranks)
        boxes = {
            rank: full_box(shape) if layout is None else layout.box(shape, rank % strategy.devices)
            for rank in ranks
            if layout is None or strategy.stage_of(rank) == stage
        }
        yield Held(names, values[names[0]], boxes)


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


class _Ranks(msgspec.Struct, frozen=True):
    """The files of a job's ranks in `directory`, in the order of the ranks, and the strategy that
    cut them; `replicas` says how those are compared."""

    directory: Path
    files: Sequence[FileIndex]
    strategy: Strategy
    replicas: Replicas

    def value(self, name: str) -> Value:
        """A full tensor. Raises `FormatError` where strategy and parts contradict each other."""
        stage = self.strategy.first_stage(name)
        return self._common(name) if stage is None else self._sharded(name, stage)

    def _common(self, name: str) -> Value:
        """A tensor of no strategy, such as a step counter: the same on every rank that has it."""
        copies = [file.tensors[name] for file in self.files if name in file.tensors]
        first = copies[0]
        if (other := first_other(copies)) is not None:
            raise FormatError(
                f"{self.directory}: {shown(name)} isn't in the strategy {self.strategy.path}, "
                f"so every rank must hold the same, but {first.path} ({first.dtype} "
                f"{list(first.shape)}) and {other.path} ({other.dtype} {list(other.shape)}) "
                "differ; it isn't the strategy of these shards, or not all of it."
            )
        return value_of(first)

    def _sharded(self, name: str, stage: int) -> Value:
        """A tensor of the parts that the devices of a stage hold."""
        layout, devices = self.strategy.stages[stage][name], self.strategy.devices
        of_stage = self.files[stage * devices : (stage + 1) * devices]
        present = {i: file.tensors[name] for i, file in enumerate(of_stage) if name in file.tensors}
        if not present:
            elsewhere = next(file.path for file in self.files if name in file.tensors)
            raise FormatError(
                f"{self.directory}: {shown(name)} belongs to stage {stage} by "
                f"{self.strategy.path}, but only ranks of others hold it ({elsewhere})."
            )
        full = self._full_shape(name, layout, list(present.values()))
        chosen: dict[Box, Stored] = {}
        for device, part in present.items():
            kept = chosen.setdefault(layout.box(full, device), part)
            if kept is not part:
                self.replicas.refuse_other(name, kept, part)
        if wrong := uncovered(full_box(full), list(chosen)):
            lacking = [str(file.path) for i, file in enumerate(of_stage) if i not in present]
            raise FormatError(
                f"{self.directory}: no rank holds part {box_text(wrong[1])} of {shown(name)} "
                f"{list(full)}"
                + (
                    f"; these lack the tensor:\n{listing(lacking)}"
                    if lacking
                    else "; it isn't the strategy of these shards."
                )
            )
        return value_of_parts(full, chosen)

    def _full_shape(
        self, name: str, layout: DeviceLayout, parts: Sequence[Stored]
    ) -> tuple[int, ...]:
        """The shape of the tensor that equal parts are of."""
        first, path = parts[0], self.strategy.path
        for part in parts:
            if (part.dtype, part.shape) != (first.dtype, first.shape):
                raise FormatError(
                    f"{part.path}: {shown(name)} is {part.dtype} {list(part.shape)}, but "
                    f"{first.dtype} {list(first.shape)} in {first.path}; the ranks of a job have "
                    "equal parts."
                )
        full = layout.shape_of_whole(first.shape)
        if full is not None and layout.full_shape in (None, full):
            return full
        expected: object = layout.full_shape
        if full is None:
            expected = counted(len(layout.tensor_map), "axis")
        raise FormatError(
            f"{first.path}: {shown(name)} has shape {list(first.shape)}"
            + (f", which {path} makes {list(full)} in all" if full is not None else "")
            + f"; the strategy says {expected}. It isn't the strategy of these shards."
        )
