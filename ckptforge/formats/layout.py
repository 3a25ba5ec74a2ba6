"""What a writer is: all the bytes of a file that aren't tensor data, and the places where the
tensors go.

Every format's offsets follow from names, dtypes and shapes, so a file is laid out before a byte of
it is written, and its tensors can then be written in any order, in pieces, by several workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ckptforge.dtypes import DType
from ckptforge.values import Extent, Place, Value


class TensorSpec(msgspec.Struct, frozen=True):
    """A tensor to be written."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def placed(self, path: Path, *extents: Extent) -> Place:
        """Its place in a file."""
        return Place(path=path, name=self.name, dtype=self.dtype, shape=self.shape, extents=extents)


def specs_of(values: Mapping[str, Value]) -> list[TensorSpec]:
    """Values as tensors to be written."""
    return [TensorSpec(name, value.dtype, value.shape) for name, value in values.items()]


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """The crc32 of `length` bytes of a file from byte `start`, which stands in the file itself, at
    the bytes `at` (little-endian): what a format says of numbers that aren't known yet."""

    start: int
    length: int
    at: tuple[int, ...]


class OutputFile(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A file to be written: `size` bytes, `literals` as (offset, bytes), which are all of them that
    aren't tensors, the places of the tensors by their names, and `seals` that are put over literals
    when the tensors are written."""

    path: Path
    size: int
    literals: tuple[tuple[int, bytes], ...]
    places: Mapping[str, Place]
    seals: tuple[Seal, ...] = ()

    @cached_property
    def tensor_bytes(self) -> int:
        """Bytes of all its tensors."""
        if isinstance(self.places, _Moved):
            return self.places.of.tensor_bytes
        return sum(place.nbytes for place in self.places.values())

    def at(self, path: Path) -> OutputFile:
        """The same file under another path."""
        return replace(self, path=path, places=_Moved(self, path))


class _Moved(Mapping[str, Place]):
    """Places in a file of another path, made when they are asked for: a job has thousands of ranks
    that are alike."""

    def __init__(self, of: OutputFile, path: Path) -> None:
        self.of, self._places, self._path = of, of.places, path

    def __getitem__(self, name: str) -> Place:
        return replace(self._places[name], path=self._path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
