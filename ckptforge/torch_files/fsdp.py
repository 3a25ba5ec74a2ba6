"""Ranks of FSDP as verl saves them: `model_world_size_<W>_rank_<R>.pt`, of each rank a torch file
with its part of every tensor.

Source: verl `verl/utils/checkpoint/fsdp_checkpoint_manager.py`, torch 2.13
`torch/distributed/tensor` (an axis of n is cut into parts of ceil(n / W), the last ones shorter or
empty), and files that it wrote.
"""

from __future__ import annotations

import re
from pathlib import Path

from ckptforge.boxes import Box
from ckptforge.checkpoints.kinds import refuse_step
from ckptforge.errors import FormatError, InputNotFoundError, shown
from ckptforge.foreign.files import entries_of
from ckptforge.formats.index import FileIndex
from ckptforge.model import IN_RANKS, Model
from ckptforge.torch_files.archive import read_archive
from ckptforge.torch_files.distributed import joined
from ckptforge.torch_files.tensors import Sharded, Unreadable, View
from ckptforge.torch_files.torch_zip import named_tensors, view_of
from ckptforge.values import Stored, Value
from ckptforge.wording import counted, listing

FORMAT = "fsdp"
_FILE = re.compile(r"model_world_size_([0-9]{1,5})_rank_([0-9]{1,5})\.pt")
Parts = list[tuple[Sharded | None, Value]]  # of the ranks, in their order


class FsdpRanks:
    """A directory of verl's, with a file for each rank."""

    def recognises(self, directory: Path) -> bool:
        """By the names of the files."""
        return any(_FILE.fullmatch(entry.name) for entry in entries_of(directory))

    def open(self, directory: Path, step: int | None, check_replicas: bool = False) -> Model:
        """All tensors, put together of the parts of the ranks."""
        refuse_step(step, directory, "one checkpoint")
        parts: dict[str, Parts] = {}
        files = []
        for path in _paths(directory):
            archive = read_archive(path)
            held: dict[str, Stored] = {}
            for name, found in named_tensors(path, archive):
                own = found if isinstance(found, Sharded) else None
                if isinstance(found, Unreadable) and own is None:
                    raise FormatError(f"{path}: {shown(name)} is {found.what}, which isn't read.")
                view = found.local if isinstance(found, Sharded) else found
                assert isinstance(view, View)
                held[name], value = view_of(path, name, view, archive)
                parts.setdefault(name, []).append((own, value))
            files.append(
                FileIndex(
                    path=path,
                    format=FORMAT,
                    size=archive.status.size,
                    mtime_ns=archive.status.mtime_ns,
                    tensors=held,
                )
            )
        if not parts:
            raise FormatError(f"{directory}: holds no tensors.")
        return Model(
            path=directory,
            format=FORMAT + IN_RANKS,
            directory=directory,
            files=tuple(files),
            values={name: _value(directory, name, own) for name, own in parts.items()},
            ranks=len(files),
        )


def _paths(directory: Path) -> list[Path]:
    """The files of all ranks, in order. Raises `InputNotFoundError`, `FormatError`."""
    found = {entry.name: entry for entry in entries_of(directory) if _FILE.fullmatch(entry.name)}
    worlds = {int(match[1]) for name in found if (match := _FILE.fullmatch(name))}
    if len(worlds) > 1:
        raise FormatError(
            f"{directory}: holds files of jobs of {' and '.join(map(str, sorted(worlds)))} ranks; "
            "keep those of one."
        )
    (world,) = worlds
    names = [f"model_world_size_{world}_rank_{rank}.pt" for rank in range(world)]
    if lacking := [name for name in names if name not in found]:
        raise InputNotFoundError(f"{directory}: files of ranks are missing:\n{listing(lacking)}")
    return [found[name] for name in names]


def _value(directory: Path, name: str, parts: Parts) -> Value:
    """A tensor of its parts: one after another along the axis, those after the end of which are
    replicas. Raises `FormatError`."""
    own, first = parts[0]
    if own is None or own.axis is None:
        return first
    box_of: dict[Box, Value] = {}
    start, length = 0, own.shape[own.axis]
    for other, value in parts:
        if start == length or other is None or (other.shape, other.axis) != (own.shape, own.axis):
            break
        stop = start + value.shape[own.axis]
        wanted = (*own.shape[: own.axis], stop - start, *own.shape[own.axis + 1 :])
        if value.shape != wanted or stop > length:
            break
        ends = {own.axis: (start, stop)}
        if stop > start:
            box_of[tuple(ends.get(i, (0, n)) for i, n in enumerate(own.shape))] = value
        start = stop
    if start != length:
        raise FormatError(
            f"{directory}: {shown(name)} {list(own.shape)} is cut along axis {own.axis}, but the "
            f"parts of {counted(len(parts), 'rank')} make up {start} of {length}."
        )
    return joined(own.shape, box_of) if box_of else first


FSDP_RANKS = FsdpRanks()
