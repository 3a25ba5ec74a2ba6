"""torch's zip files (`torch.save` since 1.6) as a format: .pt, .pth and .bin.

Source: torch 2.13, `torch/serialization.py`, and files that it wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from ckptforge.boxes import row_major_strides
from ckptforge.errors import DamagedError, FormatError, shown
from ckptforge.formats.index import MAX_NAME, MAX_TENSORS, FileIndex, check_name
from ckptforge.formats.layout import OutputFile, TensorSpec
from ckptforge.torch_files.archive import Archive, Member, read_archive
from ckptforge.torch_files.parts import Pieces, Sharded, whole_of
from ckptforge.torch_files.pickle_data import SAVE_ALONE, Machine
from ckptforge.torch_files.tensors import constructors, is_inert, storage_of
from ckptforge.torch_files.views import Unreadable, View
from ckptforge.torch_files.writing import lay_out_archive
from ckptforge.transfers import Transfer
from ckptforge.values import Extent, Fragment, Stored, Term, Value, kind_of, value_of

NAME = "a torch file (a zip with a pickle)"
ENDINGS = (".pt", ".pth", ".bin")
FORMAT = "torch"
_Way = tuple[Any, ...]  # empty, or (the way to a container, the key there)
_WALKED = (View, Unreadable, dict, list, tuple)
_MAX_DEPTH = 32
_MAX_SEEN = 1 << 21  # items of containers, those of shared ones each time
_MAX_NAMES = 1 << 26  # characters of all names
_MAX_COPIES = 1 << 12  # of one row in a view that repeats it
_MAX_PART = 1 << 16  # bytes of the directory and of the pickle of one tensor's archive
_MAX_ALL_COPIES = 1 << 17  # in a file


def recognises(head: bytes) -> bool:
    """Whether a file begins as a zip archive does, with the pickle."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head[:4] == b"PK\x03\x04" and name.endswith(b"/data.pkl")


def read_index(path: Path) -> FileIndex:
    """The tensors of a file by their paths in its dictionaries, joined by dots; nothing in it is
    run. Raises `FormatError` for what isn't a torch file, for what its pickle names beside tensors
    and plain data, and for views of numbers that aren't there."""
    archive = read_archive(path)
    tensors: dict[str, Stored] = {}
    views: dict[str, Value] = {}
    for name, held in _named(path, _load(path, archive)):
        found = whole_of(held)
        if isinstance(found, Sharded | Pieces):
            raise FormatError(
                f"{path}: {shown(name)} is {found.what}, which isn't read alone. Name the "
                "directory with the files of all ranks, or save it as a plain tensor."
            )
        if isinstance(found, Unreadable):
            raise FormatError(
                f"{path}: {shown(name)} is {found.what}, which isn't read. Save it as a plain "
                "tensor."
            )
        if name in tensors:
            raise FormatError(
                f"{path}: two tensors are called {shown(name)}, once through nested names. Rename "
                "one where it was saved."
            )
        if len(tensors) >= MAX_TENSORS:
            raise FormatError(f"{path}: holds more than {MAX_TENSORS} tensors. {SAVE_ALONE}")
        member = _member(path, name, found, archive.storages)
        tensors[name], view = _stored(path, name, found, member)
        if view is not None:
            views[name] = view
    return FileIndex(
        path=path,
        format=FORMAT,
        size=archive.status.size,
        mtime_ns=archive.status.mtime_ns,
        tensors=tensors,
        views=views,
    )


def read_data(path: Path) -> Any:
    """The object of a file as data: dictionaries, lists, numbers, texts, a `View` for each tensor,
    an `Inert` for each object of another class. Raises `FormatError` as `read_index` does."""
    return _load(path, read_archive(path))


def named_tensors(path: Path, archive: Archive) -> Iterator[tuple[str, View | Unreadable]]:
    """The tensors of an archive by their paths in its object. Raises `FormatError`."""
    return _named(path, _load(path, archive))


def tensor_of(path: Path, name: str, part: Member) -> tuple[Stored, Value]:
    """The tensor that a part of a file is as a torch file of its own: what lies there, and it.
    Raises `FormatError`."""
    archive = read_archive(path, part, _MAX_PART)
    found = _load(path, archive)
    if not isinstance(found, View) or found.copies > 1:
        raise DamagedError(f"{path}: {shown(name)} isn't a tensor of numbers; damaged.")
    return view_of(path, name, found, archive)


def view_of(path: Path, name: str, found: View, archive: Archive) -> tuple[Stored, Value]:
    """A tensor of an archive: what lies there, and it. Raises `FormatError`."""
    stored, value = _stored(path, name, found, _member(path, name, found, archive.storages))
    return stored, value_of(stored) if value is None else value


def _load(path: Path, archive: Archive) -> Any:
    where = str(path)
    machine = Machine(where, constructors(where), is_inert, lambda said: storage_of(where, said))
    return machine.load(archive.pickle)


def ordered(tensors: Sequence[TensorSpec]) -> list[TensorSpec]:
    """As they come: `torch.save` writes storages in the order in which it meets them."""
    return list(tensors)


def lay_out(path: Path, tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> OutputFile:
    """A file that `torch.load(weights_only=True)` reads as a dictionary of these tensors. Raises
    `PlanError` for dtypes that torch doesn't have."""
    return lay_out_archive(path, tensors)


def _named(path: Path, root: Any) -> Iterator[tuple[str, View | Unreadable]]:
    """(name, tensor) in the order of the dictionaries and lists of an object."""
    stack: list[tuple[_Way, Any, int]] = [((), root, 0)] if isinstance(root, _WALKED) else []
    seen = characters = copies = 0
    while stack:
        way, found, depth = stack.pop()
        if isinstance(found, View | Unreadable):
            name = _name_of(way, path)
            characters += len(name)
            copies += sum(min(view.copies, _MAX_COPIES) for view in _views_of(found))
            if characters > _MAX_NAMES or copies > _MAX_ALL_COPIES:
                raise FormatError(
                    f"{path}: its names have over {_MAX_NAMES} characters, or its views repeat "
                    f"over {_MAX_ALL_COPIES} times what they are of; no checkpoint does. "
                    f"{SAVE_ALONE}"
                )
            yield name, found
            continue
        seen += len(found)
        if depth >= _MAX_DEPTH or seen > _MAX_SEEN:
            raise FormatError(
                f"{path}: its objects are nested too deep, or are too many. {SAVE_ALONE}"
            )
        inner = found.items() if isinstance(found, dict) else enumerate(found)
        below = [((way, key), one, depth + 1) for key, one in inner if isinstance(one, _WALKED)]
        stack += reversed(below)


def _views_of(found: View | Unreadable) -> list[View]:
    if isinstance(found, Pieces):
        return [view for _, view in found.pieces]
    if isinstance(found, Sharded):
        return [found.local]
    return [found] if isinstance(found, View) else []


def _name_of(way: _Way, path: Path) -> str:
    """The keys on the way to a tensor, joined by dots. Raises `FormatError` for a long one."""
    keys: list[str] = []
    while way:
        way, key = way
        if isinstance(key, str | int):
            keys.append(str(key)[: MAX_NAME + 1])
        else:
            keys.append(shown(key))
    name = ".".join(reversed(keys)) or path.stem
    check_name(name, path)
    return name


def _member(path: Path, name: str, view: View, storages: Mapping[str, Member]) -> Member:
    member = storages.get(view.storage.key)
    if member is None:
        raise DamagedError(
            f"{path}: {shown(name)} lies in storage {shown(view.storage.key)}, which the archive "
            f"doesn't hold; it has {len(storages)} storages."
        )
    size = 1 if view.storage.dtype is None else view.storage.dtype.itemsize
    if view.storage.length * size > member.length:
        raise DamagedError(
            f"{path}: storage {shown(view.storage.key)} of {shown(name)} should have "
            f"{view.storage.length * size} bytes but has {member.length}; damaged."
        )
    return member


def _stored(path: Path, name: str, view: View, member: Member) -> tuple[Stored, Value | None]:
    """A tensor as its bytes lie there; where they aren't in its own order, the run of the storage
    that it is a view of, and the view."""
    whole = row_major_strides(view.shape)
    pairs = zip(view.shape, view.strides, whole, strict=True)
    plain = 0 in view.shape or all(n == 1 or stride == own for n, stride, own in pairs)
    size = view.dtype.itemsize
    count = 0 if 0 in view.shape else view.last - view.offset + 1
    extent = Extent(0, member.offset + view.offset * size, count * size)
    shape = view.shape if plain else (count,)
    stored = Stored(path=path, name=name, dtype=view.dtype, shape=shape, extents=(extent,))
    return stored, None if plain else _value(path, name, view, stored)


def _value(path: Path, name: str, view: View, stored: Stored) -> Value:
    """A view of a run of numbers: one fragment, or one for each copy of what it repeats."""
    shape, target = view.shape, row_major_strides(view.shape)
    repeated = [i for i, n in enumerate(shape) if n > 1 and view.strides[i] == 0]
    inner = [(view.strides[i], n) for i, n in enumerate(shape) if n > 1 and i not in repeated]
    reach = 0
    for stride, n in sorted(inner):
        if stride <= reach:
            raise FormatError(
                f"{path}: {shown(name)} has shape {list(shape)} and strides {list(view.strides)}, "
                "by which its rows overlap. Save a copy of it (contiguous())."
            )
        reach += stride * (n - 1)
    if view.copies > _MAX_COPIES:
        raise FormatError(
            f"{path}: {shown(name)} repeats its numbers {view.copies} times. Save a copy of it "
            "(contiguous())."
        )
    box = tuple(1 if i in repeated else n for i, n in enumerate(shape))
    fragments = tuple(
        Fragment(
            stored,
            Transfer(
                box,
                0,
                view.strides,
                sum(i * target[axis] for i, axis in zip(place, repeated, strict=True)),
                target,
            ).ordered(),
        )
        for place in product(*(range(shape[axis]) for axis in repeated))
    )
    term = Term(fragments=fragments)
    return Value(dtype=view.dtype, shape=shape, terms=(term,), kind=kind_of(name))
