"""Weights of any checkpoint, read one tensor at a time: as the model has them, or by the names of a
layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.errors import PlanError
from ckptforge.examine.window import read_value, strided
from ckptforge.reading.source import Source
from ckptforge.run.budget import Budget
from ckptforge.run.files import OpenFiles
from ckptforge.run.worker import Worker
from ckptforge.tables.convert import convert
from ckptforge.tables.row_text import parse_pattern
from ckptforge.tables.table import Layout, Table
from ckptforge.values import Value

_BLOCK_BYTES = 32 << 20


class Weights:
    """`read("w1", 0, 3)` gives the logical tensor of a layer and an expert, whatever layout holds
    it; a `layer` counts as the model does, dense layers and those with experts together."""

    def __init__(self, source: Source, worker: Worker | None = None) -> None:
        self.source = source
        self._layout = logical_layout(source.table)
        self._values = self._in(self._layout)
        self._worker = worker or Worker(OpenFiles(), Budget(1, 64 << 20))
        self._lengths = source.binding.sizes.lengths
        self._added = _layer_axes(source.table)
        self.unread = set(filter(self.has, source.table.tensors))

    def _in(self, layout: Layout) -> Mapping[str, Value]:
        values = self.source.model.values
        return convert(self.source.binding, layout, values, None, partly=True).values

    def named(self, layout: Layout) -> Mapping[str, Value]:
        """The values of a layout, by its names."""
        return self._in(layout)

    @property
    def layers(self) -> int:
        """How many layers the model has."""
        return self._lengths.get(next(iter(self._added)), 0)

    def has(self, tensor: str, layer: int | None = None) -> bool:
        """Whether the model has a logical tensor, and its layer `layer` does."""
        axes = self.source.table.tensors.get(tensor)
        if axes is None or not self.source.binding.holds(tensor):
            return False
        if layer is None:
            return True
        counted = self._lengths.get(axes[0], 0) if axes[0] in self._added else 0
        return counted > 0 and 0 <= self._index(axes[0], layer) < counted

    def _index(self, axis: str, layer: int) -> int:
        """A layer's index on an axis; negative where it has none there."""
        return self._lengths.index(axis, layer, self._added[axis])

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The lengths of a logical tensor's axes but layers and experts."""
        pattern = self._layout.holding(tensor)
        first = pattern.name(dict.fromkeys(pattern.name_axes, 0), self._lengths)
        return self._values[first].shape

    def read(
        self, tensor: str, layer: int | None = None, expert: int | None = None
    ) -> NDArray[Any]:
        """A logical tensor in its own dtype, of `shape`. Raises `PlanError` for one that isn't
        floating-point."""
        pattern = self._layout.holding(tensor)
        others = (axis for axis in pattern.name_axes if axis not in self._added)
        index = {} if expert is None else dict.fromkeys(others, expert)
        if layer is not None:
            axis = self.source.table.tensors[tensor][0]
            index[axis] = self._index(axis, layer)
        name = pattern.name(index, self._lengths)
        self.unread.discard(tensor)
        return self._array(tensor, self._values[name])

    def _array(self, name: str, value: Value) -> NDArray[Any]:
        if not value.dtype.floating:
            raise PlanError(
                f"{self.source.model.path}: {name} is {value.dtype}, which the forward check can't "
                "compute with."
            )
        return read_value(name, value, self._worker)

    def float32(
        self, tensor: str, layer: int | None = None, expert: int | None = None
    ) -> NDArray[np.float32]:
        """A logical tensor in float32."""
        return np.asarray(self.read(tensor, layer, expert), np.float32)

    def stored(self, name: str, value: Value, row: int | None = None) -> NDArray[np.float32]:
        """A value of `named` in float32: whole, or what lies at an index of its first axis."""
        if row is not None:
            ranges = [range(row, row + 1), *map(range, value.shape[1:])]
            value = strided(value, ranges, [False, *(True for _ in value.shape[1:])])
        return np.asarray(self._array(name, value), np.float32)

    def integers(self, name: str, value: Value) -> NDArray[Any]:
        """A value of `named` that holds integers, such as a table of tokens. Raises `PlanError` for
        one that doesn't."""
        if value.dtype.floating:
            raise PlanError(
                f"{self.source.model.path}: {name} is {value.dtype}, expected integers, which the "
                "network takes for numbers of something."
            )
        return read_value(name, value, self._worker)

    def blocks(
        self, tensor: str, width: int, layer: int | None = None, expert: int | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """A logical tensor as a matrix of rows of `width` numbers, in blocks of rows of at most
        32 MiB (or one row), each in float32."""
        matrix = self.read(tensor, layer, expert).reshape(-1, width)
        rows = max(1, _BLOCK_BYTES // (4 * width))
        for start in range(0, len(matrix), rows):
            yield matrix[start : start + rows].astype(np.float32)

    def rows(self, tensor: str, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Some rows of a matrix in float32."""
        return np.asarray(self.read(tensor)[rows], np.float32)

    def close(self) -> None:
        """Closes the files."""
        self._worker.files.close()


def logical_layout(table: Table) -> Layout:
    """Each logical tensor by itself, all of its axes apart, with those in the name that the hub's
    files count in names: layers and experts."""
    stored = table.first_layout("huggingface")
    patterns = []
    for tensor, axes in table.tensors.items():
        counted = stored.holding(tensor).name_axes
        name = ".".join([tensor, *(f"{{{axis}}}" for axis in counted)])
        own = " ".join(axis for axis in axes if axis not in counted)
        patterns.append(parse_pattern(f"{name} : {own}", tensor))
    return Layout(
        name="logical", family="huggingface", patterns=tuple(patterns), passed=stored.passed
    )


def _layer_axes(table: Table) -> dict[str, str | None]:
    """The axes that count layers, that of all layers first, and what is added to a number on it."""
    return dict(table.pipeline.layers) if table.pipeline is not None else {"l": None}
