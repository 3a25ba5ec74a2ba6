"""Weights of a checkpoint of any format, layout and split, read one matrix at a time, as a layout of the table names them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.engine.casts import numpy_dtype
from ckptforge.engine.conversion import convert
from ckptforge.engine.memory import read_assembly
from ckptforge.engine.stream import Budget, Descriptors, Worker
from ckptforge.errors import PlanError
from ckptforge.source import Source

_BLOCK_BYTES = 32 << 20


class Weights:
    """`read` gives a logical tensor at an index (`read("w1", l=0, e=3)`) as the table's layout `layout` stores it."""

    def __init__(self, source: Source, layout: str = "hub") -> None:
        self.source = source
        self.layout = source.table.layout(layout)
        self._conversion = convert(source.binding, self.layout, source.checkpoint.tensors, None)
        self._specs = {spec.name: spec for spec in self._conversion.specs}
        self._worker = Worker(Descriptors({}), Budget(1, 64 << 20))

    def has(self, tensor: str) -> bool:
        """Whether the model has a logical tensor (tied models have no lm_head)."""
        return self.source.binding.holds(tensor)

    def size(self, axis: str) -> int:
        """The length of an axis. Raises `PlanError` where nothing tells it."""
        found = self.source.binding.sizes.get(axis)
        if found is None:
            raise PlanError(f"{self.source.checkpoint.path}: the length of axis {axis} isn't known; give --config.")
        return found

    def read(self, tensor: str, **index: int) -> NDArray[Any]:
        """A tensor in the dtype that it is stored in. Raises `PlanError` for dtypes that aren't floating-point."""
        name = self.layout.holding(tensor).name(index)
        spec = self._specs[name]
        if not spec.dtype.floating:
            raise PlanError(f"{self.source.checkpoint.path}: {name} is {spec.dtype}, which the forward check can't compute with.")
        (assembly,) = self._conversion.only([name], self.source.checkpoint.shards)
        return read_assembly(assembly, self._worker).view(numpy_dtype(spec.dtype)).reshape(spec.shape)

    def float32(self, tensor: str, **index: int) -> NDArray[np.float32]:
        """A tensor in float32."""
        stored = self.read(tensor, **index)
        if stored.dtype == np.float32:
            return np.asarray(stored, np.float32)
        made = np.empty(stored.shape, np.float32)
        _widen(stored, made)
        return made

    def stacked(self, tensors: tuple[str, ...], **index: int) -> NDArray[np.float32]:
        """Matrices behind one another along their rows, in float32, no two of them in memory twice."""
        parts = [self.layout.holding(tensor).name(index) for tensor in tensors]
        shapes = [self._specs[name].shape for name in parts]
        made = np.empty((sum(shape[0] for shape in shapes), *shapes[0][1:]), np.float32)
        row = 0
        for tensor, shape in zip(tensors, shapes, strict=True):
            _widen(self.read(tensor, **index), made[row : row + shape[0]])
            row += shape[0]
        return made

    def blocks(self, tensor: str, **index: int) -> Iterator[NDArray[np.float32]]:
        """A matrix in blocks of rows of at most 32 MiB, each in float32."""
        stored = self.read(tensor, **index)
        rows = _rows_at_a_time(stored)
        for start in range(0, len(stored), rows):
            yield stored[start : start + rows].astype(np.float32)

    def rows(self, tensor: str, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Some rows of a matrix in float32."""
        return np.asarray(self.read(tensor)[rows], np.float32)

    def close(self) -> None:
        """Closes the files."""
        self._worker.descriptors.close()


def _rows_at_a_time(stored: NDArray[Any]) -> int:
    return max(1, _BLOCK_BYTES // max(1, 4 * stored.size // len(stored)))


def _widen(stored: NDArray[Any], made: NDArray[np.float32]) -> None:
    """Copied in blocks of rows, as numpy casts half-precision numbers through a temporary array."""
    rows = _rows_at_a_time(stored)
    for start in range(0, len(stored), rows):
        made[start : start + rows] = stored[start : start + rows]
