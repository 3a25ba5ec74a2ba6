"""The slices that ranks wrote, put together to full tensors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import msgspec

from ckptforge.boxes import Box, full_box
from ckptforge.checkpoints.duplicates import first_other
from ckptforge.checkpoints.replicas import Replicas
from ckptforge.composing import value_of_parts
from ckptforge.covering import box_text, uncovered
from ckptforge.errors import FormatError, shown
from ckptforge.formats.index import FileIndex
from ckptforge.mindformers.metadata import Described, Holder, Shape
from ckptforge.values import Stored, Value, value_of


class Slices(msgspec.Struct, frozen=True):
    """The files of an iteration by their names, and how copies of a slice are compared;
    `path` is that of metadata.json, for messages."""

    path: Path
    files: Mapping[str, FileIndex]
    replicas: Replicas

    def value(self, name: str, described: Described) -> Value:
        """A tensor of its slices: of several copies the first is read.

        Raises `FormatError` where metadata.json contradicts itself or the files.
        """
        parts: dict[Box, Stored] = {}
        for number, holders in described.slices.items():
            box = _numbered(described.cuts, described.slice_shape, number)
            found = [self._stored(name, described, holder) for holder in holders]
            for stored, holder in zip(found, holders, strict=True):
                self._check_place(name, described, holder, number, box, stored)
            self._compare(name, found)
            parts[box] = found[0]
        if any(part.shape != described.slice_shape for part in parts.values()):
            return self._whole(name, described, list(parts.values()))
        if wrong := uncovered(full_box(described.shape), list(parts)):
            raise FormatError(f"{self.path}: {shown(name)}: {wrong[0]} at {list(wrong[1])}.")
        return value_of_parts(described.shape, parts)

    def _stored(self, name: str, described: Described, holder: Holder) -> Stored:
        file = self.files[holder.file_name]
        stored = file.tensors.get(name)
        if stored is None:
            raise FormatError(
                f"{file.path}: {shown(name)} isn't in it, though {self.path.name} says so; it "
                f"holds {', '.join(list(file.tensors)[:3])}, …"
            )
        if stored.dtype != described.dtype:
            raise FormatError(
                f"{file.path}: {shown(name)} is {stored.dtype}, but {described.dtype} by "
                f"{self.path.name}; they aren't of one checkpoint."
            )
        if stored.shape not in (described.slice_shape, described.shape):
            raise FormatError(
                f"{file.path}: {shown(name)} is of shape {list(stored.shape)}, but "
                f"{self.path.name} says {list(described.shape)}, cut into slices of "
                f"{list(described.slice_shape)}; it is neither."
            )
        return stored

    def _check_place(
        self,
        name: str,
        described: Described,
        holder: Holder,
        number: int,
        box: Box,
        stored: Stored,
    ) -> None:
        """Raises `FormatError` where the rank that wrote a slice holds another one by the
        layout."""
        whole = stored.shape != described.slice_shape or len(described.slices) == 1
        if described.layout is None or whole:
            return
        rank = holder.storage_rank
        if (found := described.box_of(rank)) != box:
            raise FormatError(
                f"{self.path}: slice {number} of {shown(name)} is {box_text(box)} by its number, "
                f"but rank {rank}, whose file it lies in ({holder.file_name}), holds "
                f"{box_text(found)} by the layout; the file is damaged, or was made by a program "
                "that counts in another way."
            )

    def _compare(self, name: str, copies: list[Stored]) -> None:
        for other in copies[1:]:
            if other.shape != copies[0].shape:
                raise FormatError(
                    f"{other.path}: {shown(name)} is of shape {list(other.shape)}, but its replica "
                    f"in {copies[0].path} of {list(copies[0].shape)}."
                )
            self.replicas.refuse_other(name, copies[0], other)

    def _whole(self, name: str, described: Described, parts: list[Stored]) -> Value:
        """A tensor that every rank wrote whole although metadata.json says that it is cut."""
        if other := [part for part in parts if part.shape != described.shape]:
            whole = next(part for part in parts if part.shape == described.shape)
            raise FormatError(
                f"{other[0].path}: {shown(name)} is the slice {list(other[0].shape)}, but the "
                f"whole {list(whole.shape)} in {whole.path}; the ranks of a job hold the same."
            )
        self._compare(name, parts)
        return value_of(parts[0])

    def common(self, name: str) -> Value:
        """A tensor that metadata.json doesn't describe: the same in every file that holds it.
        Raises `FormatError` where it isn't."""
        copies = [file.tensors[name] for file in self.files.values() if name in file.tensors]
        if (other := first_other(copies)) is not None:
            raise FormatError(
                f"{other.path}: {shown(name)} isn't described by {self.path.name}, so every "
                f"rank must hold the same, but it differs from that in {copies[0].path}. How the "
                "ranks share it isn't known."
            )
        return value_of(copies[0])


@lru_cache(maxsize=1 << 14)
def _numbered(cuts: Shape, part: Shape, number: int) -> Box:
    """The box of slice `number`, row-major over the cuts of each axis."""
    box = []
    for cut, length in zip(reversed(cuts), reversed(part), strict=True):
        number, index = divmod(number, cut)
        box.append((index * length, (index + 1) * length))
    return tuple(reversed(box))
