"""What a writer is: all the bytes of a file that aren't tensor data, and the places where the
tensors go.

Every format's offsets follow from names, dtypes and shapes, so a file is laid out before a byte of
it is written, and its tensors can then be written in any order, in pieces, by several workers.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from ckptforge.dtypes import DType
from ckptforge.formats.entry import TensorEntry


class TensorSpec(msgspec.Struct, frozen=True):
    """A tensor to be written."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class FileLayout(msgspec.Struct, frozen=True):
    """A file to be written: `size` bytes, `literals` as (offset, bytes), and `tensors` with the
    extents to fill."""

    path: Path
    size: int
    literals: tuple[tuple[int, bytes], ...]
    tensors: dict[str, TensorEntry]

    def at(self, path: Path) -> FileLayout:
        """The same file under another path."""
        moved = {
            name: TensorEntry(name, entry.dtype, entry.shape, path, entry.extents)
            for name, entry in self.tensors.items()
        }
        return FileLayout(path, self.size, self.literals, moved)
