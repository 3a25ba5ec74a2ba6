"""Weights of any checkpoint, read one matrix at a time as a layout of the table names them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.errors import PlanError
from ckptforge.examine.window import read_value
from ckptforge.reading.source import Source
from ckptforge.run.budget import Budget
from ckptforge.run.files import OpenFiles
from ckptforge.run.worker import Worker
from ckptforge.spelling import option
from ckptforge.tables.convert import convert

_BLOCK_BYTES = 32 << 20


class Weights:
    """`read("w1", l=0, e=3)` gives a logical tensor as the table's layout `layout` stores it."""

    def __init__(self, source: Source, layout: str = "hub", worker: Worker | None = None) -> None:
        self.source = source
        self.layout = source.table.layout(layout)
        model, binding = source.model, source.binding
        self._values = convert(binding, self.layout, model.values, None, partly=True).values
        self._worker = worker or Worker(OpenFiles(), Budget(1, 64 << 20))

    def in_layout(self, layout: str) -> Weights:
        """The same weights as another layout stores them; its files are closed with this one's."""
        return Weights(self.source, layout, self._worker)

    def has(self, tensor: str) -> bool:
        """Whether the model has a logical tensor (tied models have no lm_head)."""
        return self.source.binding.holds(tensor)

    def size(self, axis: str) -> int:
        """The length of an axis. Raises `PlanError` where nothing tells it."""
        found = self.source.binding.sizes.get(axis)
        if found is None:
            raise PlanError(
                f"{self.source.model.path}: the length of axis {axis} isn't known; give "
                f"{option('config')}."
            )
        return found

    def read(self, tensor: str, **index: int) -> NDArray[Any]:
        """A tensor in its own dtype. Raises `PlanError` for one that isn't floating-point."""
        name = self.layout.holding(tensor).name(index, self.source.binding.sizes.lengths)
        value = self._values[name]
        if not value.dtype.floating:
            raise PlanError(
                f"{self.source.model.path}: {name} is {value.dtype}, which the forward check can't "
                "compute with."
            )
        return read_value(name, value, self._worker)

    def float32(self, tensor: str, **index: int) -> NDArray[np.float32]:
        """A tensor in float32."""
        return np.asarray(self.read(tensor, **index), np.float32)

    def stacked(self, tensors: tuple[str, ...], **index: int) -> NDArray[np.float32]:
        """Matrices one after another along their rows, in float32, read one at a time."""
        shapes = [
            self._values[
                self.layout.holding(tensor).name(index, self.source.binding.sizes.lengths)
            ].shape
            for tensor in tensors
        ]
        made = np.empty((sum(shape[0] for shape in shapes), *shapes[0][1:]), np.float32)
        row = 0
        for tensor, shape in zip(tensors, shapes, strict=True):
            made[row : row + shape[0]] = self.read(tensor, **index)
            row += shape[0]
        return made

    def blocks(self, tensor: str, **index: int) -> Iterator[NDArray[np.float32]]:
        """A matrix in blocks of rows of at most 32 MiB (or one row), each in float32."""
        stored = self.read(tensor, **index)
        rows = max(1, _BLOCK_BYTES // (4 * stored.shape[1]))
        for start in range(0, len(stored), rows):
            yield stored[start : start + rows].astype(np.float32)

    def rows(self, tensor: str, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Some rows of a matrix in float32."""
        return np.asarray(self.read(tensor)[rows], np.float32)

    def close(self) -> None:
        """Closes the files."""
        self._worker.files.close()
