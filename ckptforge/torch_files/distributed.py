"""Checkpoints of torch.distributed.checkpoint as a kind of directory: `.metadata`, or where ranks
saved without hearing of each other `__<rank>.metadata` of each, and the chunks of tensors in
`__<rank>_<n>.distcp`, each a torch file of its own at an offset.

Source: torch 2.13, `torch/distributed/checkpoint/metadata.py`, `filesystem.py`, and files that it
wrote. HyperParallel's are described alike, with chunks in files of safetensors:
`hyper_parallel/core/distributed_checkpoint/metadata.py`, `filesystem_storage.py` (2026).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ckptforge.boxes import Box, dot, full_box, row_major_strides
from ckptforge.checkpoints.files import read_file
from ckptforge.checkpoints.kinds import refuse_step
from ckptforge.composing import terms_through
from ckptforge.covering import box_text, uncovered
from ckptforge.errors import FormatError, InputNotFoundError, shown
from ckptforge.foreign.files import entries_of, is_file_name, is_there, read_small
from ckptforge.formats.index import MAX_DIMS, MAX_TENSORS, FileIndex, check_name
from ckptforge.model import Account, Model
from ckptforge.storage.files import open_file
from ckptforge.torch_files.archive import Member
from ckptforge.torch_files.pickle_data import MAX_BYTES, Inert, Machine
from ckptforge.torch_files.tensors import constructors, is_inert
from ckptforge.torch_files.torch_zip import tensor_of
from ckptforge.transfers import Transfer
from ckptforge.values import Stored, Value, value_of
from ckptforge.wording import counted, listing

METADATA = ".metadata"
FORMAT = "torch distributed checkpoint"
_OF_RANK = re.compile(r"__[0-9]{1,6}\.metadata")
_MAX_CELLS = 64  # for each chunk, of the grid that the edges of all make; at best one each
_METADATA = frozenset(
    f"metadata.{name}"
    for name in (
        *("Metadata", "TensorStorageMetadata", "ChunkStorageMetadata", "BytesStorageMetadata"),
        *("TensorProperties", "MetadataIndex", "StorageMeta"),
    )
)
_HOMES = {  # of modules with these classes, and of others that describe the same
    "torch.distributed.checkpoint.": frozenset(
        (
            *("filesystem._StorageInfo", "filesystem._StorageReaderTransforms"),
            *("planner.SavePlan", "planner.WriteItem", "planner.WriteItemType"),
            "planner.TensorWriteData",
        )
    ),
    "hyper_parallel.core.distributed_checkpoint.": frozenset(("storage.StorageInfo",)),
    "hyper_parallel.core.checkpoint.": frozenset(("storage.StorageInfo",)),
}
_TENSOR = ".metadata.TensorStorageMetadata"
_SAFETENSORS = ".safetensors"  # where HyperParallel keeps the chunks of a rank
Chunks = tuple[str, tuple[int, ...], dict[Box, Value]]


class DistributedCheckpoint:
    """What torch.distributed.checkpoint.save wrote."""

    def recognises(self, directory: Path) -> bool:
        """By the file that describes it."""
        return is_there(directory / METADATA) or is_there(directory / "__0.metadata")

    def open(self, directory: Path, step: int | None, check_replicas: bool | None = False) -> Model:
        """All tensors, put together of their chunks; what else was saved is passed over. Raises
        `InputNotFoundError` and `FormatError`."""
        refuse_step(step, directory, "one checkpoint")
        return described_model(directory, Described(directory))


def described_model(path: Path, described: Described) -> Model:
    """The model at a path, of all tensors that are described. Raises `FormatError`."""
    values = dict(described.values())
    if not values:
        raise FormatError(f"{path}: holds no tensors.")
    account = Account().leaving("no tensors", tuple(described.others))
    return Model(
        path=path,
        format=FORMAT,
        directory=path,
        files=tuple(described.indexes()),
        values=values,
        account=account.noting(*described.notes()),
    )


class Described:
    """`.metadata`, and the files that it names, of which each is looked into once."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.path = directory, directory / METADATA
        self.tensors: dict[str, list[Inert]] = {}
        self.places: dict[tuple[str, tuple[int, ...]], Inert] = {}
        self.others: list[str] = []
        self.repeated: set[str] = set()
        paths = [self.path] if is_there(self.path) else _of_ranks(directory)
        for path in paths:
            self.path = path
            self._read()
        self.held: dict[Path, dict[str, Stored]] = {}
        self.ranks: dict[Path, FileIndex] = {}

    def _read(self) -> None:
        """Adds what one file describes; of ranks each its own chunks."""
        content = read_small(self.path, MAX_BYTES)
        where = str(self.path)
        machine = Machine(
            where, constructors(where), lambda name: _is_class(name) or is_inert(name), _no_storage
        )
        root = machine.load(content)
        for key, about in self._mapping(self._field(root, "state_dict_metadata")).items():
            if about.name.endswith(_TENSOR):
                self.tensors.setdefault(str(key), []).append(about)
            elif str(key) not in self.others:
                self.others.append(str(key))
        for key, info in self._mapping(self._field(root, "storage_data")).items():
            offset = self._field(key, "offset", None)
            if offset is not None:
                place = str(self._field(key, "fqn")), self._counts(offset)
                if self.places.setdefault(place, info) is not info:
                    self.repeated.add(place[0])

    def notes(self) -> tuple[str, ...]:
        """A sentence about what several ranks saved."""
        if not self.repeated:
            return ()
        them = counted(len(self.repeated), "tensor", "lie")
        return (
            f"{self.directory}: {them} in the files of several ranks, which saved without hearing "
            f"of each other, such as {shown(min(self.repeated))}; the first is read.",
        )

    def values(self) -> Iterator[tuple[str, Value]]:
        """The tensors. Raises `FormatError` for chunks that don't make up what is said of them."""
        return ((name, joined(shape, parts)) for name, shape, parts in self.chunks())

    def chunks(self, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Chunks]:
        """(name, shape, box → what lies there) of the tensors that are wanted. Raises `FormatError`
        for chunks that don't make up what is said of them."""
        for number, (name, described) in enumerate(self.tensors.items()):
            if not wanted(name):
                continue
            check_name(name, self.path)
            if number >= MAX_TENSORS:
                raise FormatError(f"{self.path}: describes more than {MAX_TENSORS} tensors.")
            shape = self._counts(self._field(described[0], "size"))
            parts: dict[Box, Value] = {}
            for about in described:
                if self._counts(self._field(about, "size")) != shape:
                    raise self._wrong(f"{shown(name)} has another shape than another rank says")
                for chunk in self._field(about, "chunks"):
                    offsets = self._counts(self._field(chunk, "offsets"))
                    sizes = self._counts(self._field(chunk, "sizes"))
                    if len(offsets) != len(shape) or len(sizes) != len(shape):
                        raise self._wrong(
                            f"a chunk of {shown(name)} has other axes than the tensor"
                        )
                    box = tuple((lo, lo + n) for lo, n in zip(offsets, sizes, strict=True))
                    if box not in parts and (0 not in sizes or not parts):
                        parts[box] = self._chunk(name, offsets, sizes)
            if (wrong := cover_problem(name, shape, parts)) is not None:
                raise self._wrong(wrong)
            yield name, shape, parts

    def _chunk(self, name: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Value:
        info = self.places.get((name, offsets))
        if info is None and not any(offsets):  # HyperParallel's of what isn't cut
            info = self.places.get((name, ()))
        if info is None:
            raise self._wrong(f"{shown(name)} at {list(offsets)} has no place in any file")
        if self._field(info, "transform_descriptors", None):
            raise self._wrong(f"{shown(name)} is compressed or otherwise transformed")
        file = self._field(info, "relative_path")
        if not isinstance(file, str) or not is_file_name(file):
            raise self._wrong(f"{shown(file)} isn't the name of a file")
        path = self.directory / file
        title = name if not any(offsets) else f"{name}[{', '.join(map(str, offsets))}]"
        if file.endswith(_SAFETENSORS):
            stored = self._of_rank(path, str(self._field(info, "tensor_key", None) or name))
            value = value_of(stored)
        else:
            place = self._counts((self._field(info, "offset"), self._field(info, "length")))
            stored, value = tensor_of(path, title, Member(*place))
        if value.shape != sizes:
            raise self._wrong(
                f"a chunk of {shown(name)} is {list(sizes)}, but {list(value.shape)} in {file}"
            )
        self.held.setdefault(path, {})[title] = stored
        return value

    def _of_rank(self, path: Path, key: str) -> Stored:
        """A tensor of a rank's file of safetensors."""
        if path not in self.ranks:
            self.ranks[path] = read_file(path)
        stored = self.ranks[path].tensors.get(key)
        if stored is None:
            raise FormatError(f"{path}: doesn't hold {shown(key)}, which {self.path.name} names.")
        return stored

    def indexes(self) -> Iterator[FileIndex]:
        """The files that were looked into."""
        for path, tensors in self.held.items():
            reader = open_file(path)
            status = reader.status()
            reader.close()
            yield FileIndex(
                path=path,
                format=FORMAT,
                size=status.size,
                mtime_ns=status.mtime_ns,
                tensors=tensors,
            )

    def _field(self, found: Any, name: str, *default: Any) -> Any:
        state = found.state if isinstance(found, Inert) else None
        if not isinstance(state, dict) or (name not in state and not default):
            raise self._wrong(f"where {name} should stand is {shown(found)}")
        return state.get(name, *default)

    def _mapping(self, found: Any) -> Mapping[Any, Inert]:
        if not isinstance(found, dict) or not all(isinstance(one, Inert) for one in found.values()):
            raise self._wrong(f"there is {shown(found)} where tensors are described")
        return found

    def _counts(self, found: Any) -> tuple[int, ...]:
        if not isinstance(found, list | tuple) or len(found) > MAX_DIMS:
            raise self._wrong(f"{shown(found)} isn't a list of lengths")
        if not all(type(n) is int and 0 <= n < 1 << 62 for n in found):
            raise self._wrong(f"{shown(found)} aren't lengths")
        return tuple(found)

    def _wrong(self, what: str) -> FormatError:
        return FormatError(f"{self.path}: {what}; damaged, or another kind of file.")


def cover_problem(name: str, shape: tuple[int, ...], parts: Mapping[Box, Value]) -> str | None:
    """What is wrong with the boxes of a tensor, if they don't make it up."""
    cells = math.prod(len({edge for box in parts for edge in box[i]}) for i in range(len(shape)))
    if cells > _MAX_CELLS * (len(parts) + _MAX_CELLS):
        return f"the chunks of {shown(name)} make up no grid"
    if 0 not in shape and (wrong := uncovered(full_box(shape), list(parts))):
        return f"its chunks {wrong[0]} {box_text(wrong[1])} of {shown(name)}"
    return None


def joined(shape: tuple[int, ...], parts: Mapping[Box, Value]) -> Value:
    """Boxes of a tensor of this shape as the tensor that they make up."""
    first, strides = next(iter(parts.values())), row_major_strides(shape)
    pieces = [
        (
            value,
            Transfer(
                value.shape,
                0,
                row_major_strides(value.shape),
                dot([lo for lo, _ in box], strides),
                strides,
            ).ordered(),
        )
        for box, value in parts.items()
    ]
    terms = tuple(terms_through(pieces))
    return Value(dtype=first.dtype, shape=shape, terms=terms, kind=first.kind)


def _of_ranks(directory: Path) -> list[Path]:
    """`__<rank>.metadata` of all ranks, in order. Raises `InputNotFoundError`."""
    found = {entry.name: entry for entry in entries_of(directory)}
    count = sum(_OF_RANK.fullmatch(name) is not None for name in found)
    names = [f"__{rank}{METADATA}" for rank in range(count)]
    if lacking := [name for name in names if name not in found]:
        raise InputNotFoundError(f"{directory}: files of ranks are missing:\n{listing(lacking)}")
    return [found[name] for name in names]


def _is_class(name: str) -> bool:
    """Whether it is one of the classes that describe a checkpoint."""
    return any(
        name.startswith(home) and name.removeprefix(home) in _METADATA | more
        for home, more in _HOMES.items()
    )


def _no_storage(said: Any) -> Any:
    raise ValueError(f"a tensor where none can be: {shown(said)}")


DISTRIBUTED_CHECKPOINT = DistributedCheckpoint()
