"""Ranks of FSDP as verl saves them: `model_world_size_<W>_rank_<R>.pt`, for each rank a torch file
with its part of every tensor.

Source: verl `verl/utils/checkpoint/fsdp_checkpoint_manager.py`, torch 2.13
`torch/distributed/tensor` (an axis of n is cut into parts of ceil(n / W), the last ones shorter or
empty), `torch/distributed/_shard/sharded_tensor` (FSDP1's, whose parts say where they lie), and
files that it wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ckptforge.boxes import Box
from ckptforge.checkpoints.kinds import refuse_step
from ckptforge.errors import FormatError, InputNotFoundError, shown
from ckptforge.foreign.files import entries_of
from ckptforge.formats.index import FileIndex
from ckptforge.model import IN_RANKS, Model
from ckptforge.torch_files.archive import read_archive
from ckptforge.torch_files.distributed import cover_problem, joined
from ckptforge.torch_files.parts import Pieces, Sharded
from ckptforge.torch_files.torch_zip import named_tensors, view_of
from ckptforge.torch_files.views import Unreadable, View
from ckptforge.values import Stored, Value
from ckptforge.wording import counted, listing

FORMAT = "fsdp"
_FILE = re.compile(r"model_world_size_([0-9]{1,5})_rank_([0-9]{1,5})\.pt")


class Part(NamedTuple):
    """What a rank has of a tensor: how its file describes it, where it begins if that is said,
    and its numbers."""

    found: View | Unreadable
    start: tuple[int, ...] | None
    value: Value


class FsdpRanks:
    """A directory of verl's, with a file for each rank."""

    def recognises(self, directory: Path) -> bool:
        """By the names of the files."""
        return any(_FILE.fullmatch(entry.name) for entry in entries_of(directory))

    def open(self, directory: Path, step: int | None, check_replicas: bool | None = False) -> Model:
        """All tensors, put together of the parts of the ranks. Raises `InputNotFoundError` and
        `FormatError`."""
        refuse_step(step, directory, "one checkpoint")
        parts: dict[str, list[Part]] = {}
        files = []
        for path in _paths(directory):
            archive = read_archive(path)
            held: dict[str, Stored] = {}
            for name, found in named_tensors(path, archive):
                own = parts.setdefault(name, [])
                for start, view in _views(path, name, found):
                    title = f"{name}{list(start)}" if start and any(start) else name
                    held[title], value = view_of(path, title, view, archive)
                    own.append(Part(found, start, value))
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
        sizes = " and ".join(map(str, sorted(worlds)))
        raise FormatError(
            f"{directory}: holds the files of jobs with {sizes} ranks; keep those of one job."
        )
    (world,) = worlds
    names = [f"model_world_size_{world}_rank_{rank}.pt" for rank in range(world)]
    if lacking := [name for name in names if name not in found]:
        raise InputNotFoundError(f"{directory}: files of ranks are missing:\n{listing(lacking)}")
    return [found[name] for name in names]


def _views(
    path: Path, name: str, found: View | Unreadable
) -> Iterator[tuple[tuple[int, ...] | None, View]]:
    """(where it begins if that is said, what lies there) of what a rank has of a tensor. Raises
    `FormatError`."""
    if isinstance(found, View):
        yield None, found
    elif isinstance(found, Sharded):
        yield None, found.local
    elif isinstance(found, Pieces):
        yield from found.pieces
    else:
        raise FormatError(f"{path}: {shown(name)} is {found.what}, which isn't read.")


def _value(directory: Path, name: str, parts: Sequence[Part]) -> Value:
    """A tensor of its parts. Raises `FormatError`."""
    if not parts:
        raise FormatError(f"{directory}: no rank has a part of {shown(name)}.")
    first = parts[0].found
    if isinstance(first, Pieces):
        return _of_pieces(directory, name, first, parts)
    if isinstance(first, Sharded) and first.axis is not None:
        return _along_axis(directory, name, first, first.axis, parts)
    return parts[0].value


def _of_pieces(directory: Path, name: str, first: Pieces, parts: Sequence[Part]) -> Value:
    """A tensor of boxes, of which each says where it lies."""
    boxes: dict[Box, Value] = {}
    for part in parts:
        start, value = part.start, part.value
        same = isinstance(part.found, Pieces) and part.found.shape == first.shape
        if not same or start is None or value.dtype != parts[0].value.dtype:
            raise FormatError(
                f"{directory}: the parts of {shown(name)} have different shapes or dtypes; are the "
                "files of one job?"
            )
        box = tuple((lo, lo + n) for lo, n in zip(start, value.shape, strict=True))
        if 0 not in value.shape or not boxes:
            boxes.setdefault(box, value)
    if (wrong := cover_problem(name, first.shape, boxes)) is not None:
        raise FormatError(f"{directory}: {wrong}; are the files of one job, and all there?")
    return joined(first.shape, boxes)


def _along_axis(
    directory: Path, name: str, first: Sharded, axis: int, parts: Sequence[Part]
) -> Value:
    """A tensor of parts one after another along an axis, those after the end of which are
    replicas."""
    shape, box_of = first.shape, dict[Box, Value]()
    start, length = 0, shape[axis]
    for part in parts:
        other, value = part.found, part.value
        if start == length or not isinstance(other, Sharded):
            break
        stop = start + value.shape[axis]
        wanted = (*shape[:axis], stop - start, *shape[axis + 1 :])
        alike = (other.shape, other.axis) == (shape, axis) and value.shape == wanted
        if not alike or stop > length:
            break
        if stop > start:
            ends = {axis: (start, stop)}
            box_of[tuple(ends.get(i, (0, n)) for i, n in enumerate(shape))] = value
        start = stop
    if start != length:
        raise FormatError(
            f"{directory}: {shown(name)} {list(shape)} is cut along axis {axis}, but the parts of "
            f"{counted(len(parts), 'rank')} make up {start} of {length}."
        )
    return joined(shape, box_of) if box_of else parts[0].value


FSDP_RANKS = FsdpRanks()
