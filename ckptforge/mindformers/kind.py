"""An iteration as a model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from ckptforge.boxes import full_box
from ckptforge.checkpoints.files import read_file
from ckptforge.checkpoints.replicas import Replicas
from ckptforge.errors import FormatError, InputNotFoundError
from ckptforge.foreign.files import entries_of, is_there
from ckptforge.formats.index import FileIndex
from ckptforge.mindformers.common import ITERATION, Number, read_common
from ckptforge.mindformers.job import refuse_strangers
from ckptforge.mindformers.metadata import Described, read_metadata
from ckptforge.mindformers.names import (
    COMMON,
    METADATA,
    MODEL,
    OPTIMIZER,
    Part,
    parts_among,
)
from ckptforge.mindformers.roots import Iteration, find_iteration, is_iteration, is_root
from ckptforge.mindformers.slices import Slices
from ckptforge.model import IN_RANKS, Account, Held, Model
from ckptforge.tables.skeletons import skeleton_of
from ckptforge.values import Value, value_of
from ckptforge.wording import counted, listing

_log = logging.getLogger(__name__)
FORMAT = "mindformers iteration"


class Iterations:
    """The root of a run of MindFormers since r1.7, or one of its iterations."""

    def recognises(self, directory: Path) -> bool:
        """By the names in it."""
        return is_root(directory) or is_iteration(directory)

    def open(self, directory: Path, step: int | None, check_replicas: bool | None = False) -> Model:
        """An iteration, of a root the last one or that of the step, as a model of full tensors.

        Raises `InputNotFoundError` for what isn't there, and `FormatError` where metadata.json and
        the files contradict each other, each with the tensor.
        """
        return full_tensors(directory, read_iteration(directory, step), check_replicas)


ITERATIONS = Iterations()


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """An iteration: where it lies, its files of tensors and what metadata.json says; None where
    there is none, as of one rank."""

    iteration: Iteration
    parts: tuple[Part, ...]
    files: tuple[FileIndex, ...]
    described: dict[str, Described] | None
    notes: tuple[str, ...]

    @property
    def ranks(self) -> int:
        """How many ranks wrote it, as far as that is said."""
        held = (self.described or {}).values()
        named = [max(one.ranks, default=0) for one in held]
        wrote = [holder.storage_rank for one in held for holder in one.holders]
        return max([*named, *wrote], default=0) + 1


def full_tensors(directory: Path, opened: Opened, check_replicas: bool | None = False) -> Model:
    """An iteration whose indexes are read as a model; `directory` is what a user named. Raises
    `FormatError`."""
    values = dict(_values(opened, check_replicas))
    if not values:
        raise FormatError(f"{opened.iteration.directory}: holds no tensors.")
    run, notes = _run(opened.iteration)
    several = opened.ranks > 1
    files, ranks = counted(len(opened.files), "file"), counted(opened.ranks, "rank")
    _log.info("opened %s: %s of %s in %s", opened.iteration.directory, FORMAT, ranks, files)
    return Model(
        path=directory,
        format=FORMAT + IN_RANKS if several else FORMAT,
        directory=directory,
        files=opened.files,
        values=values,
        account=Account().noting(*opened.iteration.notes, *opened.notes, *notes),
        ranks=opened.ranks if several else 0,
        run=run,
        held=partial(_held, opened, values) if several else None,
        optimizer=frozenset(
            name
            for part, file in zip(opened.parts, opened.files, strict=True)
            if part.kind == OPTIMIZER
            for name in file.tensors
        ),
    )


def read_iteration(directory: Path, step: int | None) -> Opened:
    """The indexes of an iteration's files, and what is said of them. Raises the errors of
    `Iterations.open`."""
    iteration = find_iteration(directory, step)
    entries = entries_of(iteration.directory)
    parts = parts_among(entries)
    if not any(part.kind == MODEL for part in parts):
        raise InputNotFoundError(_no_model(iteration.directory, entries, parts))
    _refuse_several(iteration.directory, parts)
    path = iteration.directory / METADATA
    described = read_metadata(path) if is_there(path) else None
    notes = [f"{entry}: is left of an interrupted save; not read." for entry in _left(entries)]
    if described is None and parts[0].count > 1:
        raise InputNotFoundError(
            f"{iteration.directory}: holds {counted(parts[0].count, 'file')} of shards, but no "
            f"{METADATA}, which says how they are cut; copy the whole iteration."
        )
    if described is not None:
        refuse_strangers(path, described, parts[0].count)
        described, lacking = _without_optimizer(path, described, parts)
        notes += lacking
    files = tuple(read_file(iteration.directory / part.name) for part in parts)
    notes += [note for file in files for note in file.notes]
    return Opened(
        iteration=iteration,
        parts=tuple(parts),
        files=files,
        described=described,
        notes=tuple(notes),
    )


def _values(opened: Opened, check_replicas: bool | None) -> Iterator[tuple[str, Value]]:
    if opened.described is None:
        for file in opened.files:
            yield from ((name, value_of(stored)) for name, stored in file.tensors.items())
        return
    slices = Slices(
        opened.iteration.directory / METADATA,
        {file.path.name: file for file in opened.files},
        Replicas(check_replicas),
    )
    for name, described in opened.described.items():
        yield name, slices.value(name, described)
    for name in dict.fromkeys(name for file in opened.files for name in file.tensors):
        if name not in opened.described:
            yield name, slices.common(name)


def _held(opened: Opened, values: Mapping[str, Value]) -> Iterator[Held]:
    """Which box of each kind of tensor that metadata.json describes the ranks of the job hold."""
    kinds: dict[tuple[Any, ...], Held] = {}
    for name, one in (opened.described or {}).items():
        boxes = {
            rank: full_box(one.shape) if one.layout is None else one.box_of(rank)
            for rank in sorted({*one.ranks, *(holder.storage_rank for holder in one.holders)})
        }
        value = values[name]
        key = skeleton_of(name)[0], value.dtype, value.shape, *boxes.items()
        kinds.setdefault(key, Held([], value, boxes)).names.append(name)
    yield from kinds.values()


def _no_model(directory: Path, entries: Sequence[Path], parts: Sequence[Part]) -> str:
    if parts:
        return (
            f"{directory}: holds {parts[0].name}, the optimizer's state, but no file of the model "
            f"({parts[0].name.replace('opt-', 'model-')}); copy the whole iteration."
        )
    names = listing([entry.name for entry in entries]) if entries else "nothing"
    return f"{directory}: holds no <prefix>-model-<i>-<n>.safetensors; there is\n{names}"


def _refuse_several(directory: Path, parts: Sequence[Part]) -> None:
    """Raises `FormatError` for files of two iterations, or of some of the ranks."""
    for kind in (MODEL, OPTIMIZER):
        own = [part for part in parts if part.kind == kind]
        if len({(part.prefix, part.count) for part in own}) > 1:
            other = next(p for p in own if (p.prefix, p.count) != (own[0].prefix, own[0].count))
            raise FormatError(
                f"{directory}: holds {own[0].name} and {other.name}, which are of two checkpoints; "
                "move one of them away."
            )
        if own and (missing := own[0].count - len(own)):
            lacking = sorted({*range(min(own[0].count, len(own) + 10))} - {p.index for p in own})
            names = [
                part.name.replace(f"-{part.index:07d}-", f"-{index:07d}-")
                for index in lacking
                for part in own[:1]
            ]
            raise InputNotFoundError(
                f"{directory}: {counted(missing, 'file')} of {own[0].count} missing:\n"
                f"{listing(names, total=missing)}"
            )
        if over := [part for part in own if part.index >= part.count]:
            raise FormatError(
                f"{directory}: {over[0].name} is number {over[0].index} of {over[0].count}, which "
                "can't be; it was renamed."
            )


def _without_optimizer(
    path: Path, described: dict[str, Described], parts: Sequence[Part]
) -> tuple[dict[str, Described], list[str]]:
    """What is described of the files that are there. Raises `InputNotFoundError` for a missing
    one; only the files of the optimizer may be missing, all together."""
    named = {holder.file_name for one in described.values() for holder in one.holders}
    missing = sorted(named - {part.name for part in parts})
    if not missing:
        return described, []
    there = {part.kind for part in parts}
    if OPTIMIZER in there or not all("opt-" in name for name in missing):
        raise InputNotFoundError(
            f"{path.parent}: files that {path.name} names are missing:\n{listing(missing)}"
        )
    kept = {
        name: one
        for name, one in described.items()
        if not {holder.file_name for holder in one.holders} & {*missing}
    }
    note = (
        f"{path.parent}: the {counted(len(missing), 'file')} of the optimizer that {path.name} "
        "names aren't there; only the weights are read."
    )
    return kept, [note]


def _left(entries: Sequence[Path]) -> list[Path]:
    """Temporary files of a save that was interrupted (Python's NamedTemporaryFile)."""
    return [entry for entry in entries if entry.name.startswith("tmp")]


def _run(iteration: Iteration) -> tuple[dict[str, Number], tuple[str, ...]]:
    """What is said of the training run: the numbers of common.json, and which iteration it is."""
    path = iteration.directory / COMMON
    numbers, notes = read_common(path) if is_there(path) else ({}, ())
    if iteration.number is not None:
        numbers[ITERATION] = iteration.number
    return numbers, notes
