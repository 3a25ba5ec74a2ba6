"""Tensors that several files of one directory hold: which copy is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from ckptforge.errors import FormatError, shown
from ckptforge.formats.index import FileIndex
from ckptforge.storage.files import read_range
from ckptforge.values import Located, Stored

_PIECE = 1 << 20  # bytes that are compared at a time
Duplicates = dict[str, list[int]]  # tensor → the numbers of the files that hold it, several


def without_duplicates(
    files: Sequence[FileIndex], weight_map: Mapping[str, str], index: Path | None = None
) -> list[FileIndex]:
    """The files with each tensor in one of them, what they lost in `passed_over`, and a note that
    says so.

    `weight_map` (tensor → file name) of the index file `index` decides where it names a tensor.
    Else copies of one dtype, one shape and equal bits are one tensor, which is read from the first
    file. Raises `FormatError`, naming both files, for other copies.
    """
    if len(set[str]().union(*(file.tensors for file in files))) == sum(
        len(file.tensors) for file in files
    ):
        return list(files)
    holders: Duplicates = {}
    for number, file in enumerate(files):
        for name in file.tensors:
            holders.setdefault(name, []).append(number)
    duplicates = {name: numbers for name, numbers in holders.items() if len(numbers) > 1}
    places = {file.path.name: number for number, file in enumerate(files)}
    named = {name: places.get(weight_map.get(name, "")) for name in duplicates}
    listed = {name: found for name, found in duplicates.items() if named[name] in found}
    others = {name: numbers for name, numbers in duplicates.items() if name not in listed}
    _refuse_unequal(files, others, index)
    kept = {name: places[weight_map[name]] for name in listed} | {
        name: numbers[0] for name, numbers in others.items()
    }
    lost = [{n for n in file.tensors if kept.get(n, i) != i} for i, file in enumerate(files)]
    found = [_without(file, names) for file, names in zip(files, lost, strict=True)]
    notes = []
    if listed:
        assert index is not None
        notes.append(
            f"{_several(files, listed, kept)}: the copies that {index.name} names are read, the "
            "others are passed over."
        )
    if others:
        notes.append(f"{_several(files, others, kept)}, with the same bits: each is read once.")
    return [replace(found[0], notes=(*found[0].notes, *notes)), *found[1:]]


def _without(file: FileIndex, names: set[str]) -> FileIndex:
    if not names:
        return file
    tensors = {name: entry for name, entry in file.tensors.items() if name not in names}
    passed_over = tuple(name for name in file.tensors if name in names)
    return replace(file, tensors=tensors, passed_over=passed_over)


def _several(files: Sequence[FileIndex], duplicates: Duplicates, kept: Mapping[str, int]) -> str:
    """The beginning of a note: how many tensors, and one of them with its files."""
    name, numbers = next(iter(duplicates.items()))
    other = next(number for number in numbers if number != kept[name])
    count = "1 tensor lies" if len(duplicates) == 1 else f"{len(duplicates)} tensors lie"
    return (
        f"{count} in several files, such as {shown(name)} in {files[kept[name]].path.name} and in "
        f"{files[other].path.name}"
    )


def _refuse_unequal(files: Sequence[FileIndex], duplicates: Duplicates, index: Path | None) -> None:
    for name, (first, *rest) in duplicates.items():
        one = files[first].tensors[name]
        for number in rest:
            other = files[number].tensors[name]
            kinds = [f"{entry.dtype} {list(entry.shape)}" for entry in (one, other)]
            if kinds[0] == kinds[1] and same_bytes(one, other):
                continue
            how = "with other values"
            if kinds[0] != kinds[1]:
                how = f"as {kinds[1]} instead of {kinds[0]}"
            unnamed = "there is no index" if index is None else f"{index.name} doesn't list it"
            raise FormatError(
                f"{other.path}: tensor {shown(name)} is also in {one.path.name}, {how}, and "
                f"{unnamed} to say which is meant. Move the file that doesn't belong to the model "
                "away, or get the model's index, whose weight_map names the file of each tensor."
            )


def first_other(copies: Sequence[Stored]) -> Stored | None:
    """The first of several tensors that isn't the same as the first of them: of another dtype or
    shape, or of other bytes. None where all are the same."""
    one = copies[0]
    for other in copies[1:]:
        if (one.dtype, one.shape) != (other.dtype, other.shape) or not same_bytes(one, other):
            return other
    return None


def same_bytes(a: Located, b: Located) -> bool:
    """Whether two tensors of as many bytes hold the same, read piece by piece."""
    buffers = [memoryview(bytearray(min(_PIECE, max(a.nbytes, 1)))) for _ in range(2)]
    for start in range(0, a.nbytes, _PIECE):
        length = min(_PIECE, a.nbytes - start)
        for entry, buffer in zip((a, b), buffers, strict=True):
            read_range(entry, start, buffer[:length])
        if buffers[0][:length] != buffers[1][:length]:
            return False
    return True
