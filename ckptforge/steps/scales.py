"""The arithmetic of scales."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.dtypes import DType
from ckptforge.errors import FormatError, printable
from ckptforge.run.audit import CastCount
from ckptforge.run.casts import numpy_dtype
from ckptforge.steps.code_tables import Tables, every_code
from ckptforge.steps.scaled import Scaled
from ckptforge.values import Read, Stored, Window

Array = NDArray[Any]
_LARGEST = {  # magnitude of a number
    "float8_e4m3fn": 448.0,
    "float8_e5m2": 57344.0,
    "int8": 128.0,
    "uint8": 255.0,
    "float4_e2m1": 6.0,
    "uint4": 15.0,
}
_PIECE = 1 << 17  # elements that are scaled at a time
_TABLES = 256  # blocks whose codes are looked at at a time, or as many as lie beside each other
_LARGE = 1 << 11  # numbers of a block for which all codes are worth looking at


class Scales:
    """The scales and offsets of one tensor, in memory."""

    def __init__(self, stored: Stored, step: Scaled, read: Read) -> None:
        dtype = step.gives(stored.dtype)
        *leading, columns = zip(stored.shape or (1,), step.block or (1,), strict=True)
        self._leading, (self._columns, block) = leading, columns
        self._block = min(block, max(self._columns, 1))
        across = -(-self._columns // self._block) if self._columns else 0
        self._scales = step.scale.numbers(read, dtype).reshape(-1, across)
        self._offsets: Array | None = None
        if step.offset is not None:
            padded = step.offset.numbers(read, dtype).reshape(-1, across)  # to whole words
            self._offsets = padded[: len(self._scales)]
        made = numpy_dtype(dtype).type
        self._shift, self._factor = made(step.shift), made(step.factor)
        self._stored, self._made = stored.dtype, dtype
        self._tables: tuple[Hashable, Tables] | None = None  # the last, of a thread
        self._of_infinities = stored.dtype.name == "float8_e5m2" and bool((self._scales == 0).any())
        self._refuse_infinite(stored, step)

    def _refuse_infinite(self, stored: Stored, step: Scaled) -> None:
        with np.errstate(all="ignore"):
            largest = self._scales.dtype.type(_LARGEST.get(stored.dtype.name, 0.0))
            shifted = largest + np.abs(self._shift)
            if self._offsets is not None:
                shifted = shifted + np.abs(self._offsets)
            if np.isfinite(self._scales * shifted).all():
                return
        where = f"{step.scale.stored.path}: {printable(step.scale.stored.name)}"
        raise FormatError(
            f"{where} holds scales that aren't finite, or make numbers that aren't; "
            "the file is damaged."
        )

    def apply(self, numbers: Array, windows: Sequence[Window]) -> int:
        """Makes of numbers what they stand for. Returns how many infinities met a scale of 0,
        which makes NaN."""
        undefined = 0
        for at, row, count, c0, c1 in windows:
            window = numbers[at : at + count * (c1 - c0)].reshape(count, c1 - c0)
            with np.errstate(invalid="ignore"):
                for first, last in _pieces(count, c1 - c0):
                    undefined += self._scale(window[first:last], row + first, c0)
        return undefined

    def decodes(self, target: DType) -> bool:
        """Where codes are bytes, and blocks have more numbers than there are codes."""
        size = self._block * math.prod(min(block, length) for length, block in self._leading)
        bytes_ = self._stored.itemsize == self._stored.per_byte == 1
        return bytes_ and target.itemsize == 2 and size >= _LARGE and not self._of_infinities

    def decode(
        self, codes: Array, windows: Sequence[Window], target: DType, out: Array
    ) -> CastCount:
        """What codes stand for, cast, from a table of all codes for each block."""
        count = CastCount()
        for at, row, height, c0, c1 in windows:
            width = c1 - c0
            blocks = np.arange(c0, c1) // self._block
            columns = slice(int(blocks[0]), int(blocks[-1]) + 1)
            rows = self._grid_rows(np.arange(row, row + height))
            step = max(_TABLES // (columns.stop - columns.start), 1)
            step *= self._leading[-1][1] if self._leading else 1
            for first in range(0, height, step):
                found, own = np.unique(rows[first : first + step], return_inverse=True)
                band = slice(at + first * width, at + (first + len(own)) * width)
                tables = self._tables_of(found, columns, target)
                count.add(tables.decode(codes[band], own, blocks - columns.start, out[band]))
        return count

    def _tables_of(self, rows: NDArray[np.intp], columns: slice, target: DType) -> Tables:
        key = (rows.tobytes(), columns.start, columns.stop, target)
        if self._tables is None or self._tables[0] != key:
            scales = self._scales[rows, columns, None]
            numbers = np.empty((*scales.shape[:2], 256), scales.dtype)
            numbers[:] = every_code(self._stored, self._made)
            offsets = None if self._offsets is None else self._offsets[rows, columns, None]
            self._make(numbers, scales, offsets)
            self._tables = key, Tables(numbers, self._made, target)
        return self._tables[1]

    def _scale(self, window: Array, row: int, column: int) -> int:
        rows = self._grid_rows(np.arange(row, row + len(window)))
        if (rows == rows[0]).all():
            rows = rows[:1]
        offsets = None
        if self._offsets is not None:
            offsets = self._spread(self._offsets, rows, column, window.shape[1])
        scales = self._spread(self._scales, rows, column, window.shape[1])
        undefined = (
            int(np.count_nonzero(np.isinf(window) & (scales == 0))) if self._of_infinities else 0
        )
        self._make(window, scales, offsets)
        return undefined

    def _make(self, numbers: Array, scales: Array, offsets: Array | None) -> None:
        """Makes of numbers what they stand for."""
        if offsets is not None:
            numbers -= offsets
        if self._shift:
            numbers -= self._shift
        numbers *= scales
        if self._factor != 1:
            numbers *= self._factor

    def _grid_rows(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Rows of the tensor, its leading axes taken as one → rows of the grid of blocks."""
        found: NDArray[np.intp] = np.zeros_like(rows)
        stride = 1
        for length, block in reversed(self._leading):
            rows, index = np.divmod(rows, length)
            found += index // block * stride
            stride *= -(-length // block)
        return found

    def _spread(self, grid: Array, rows: NDArray[np.intp], column: int, columns: int) -> Array:
        """The numbers of some rows of the grid, over `columns` columns of the tensor from `column`
        on."""
        first, last = column // self._block, (column + columns - 1) // self._block
        chosen = grid[rows, first : last + 1]
        if first == last:
            return chosen
        return np.repeat(chosen, self._block, axis=1)[:, column - first * self._block :][
            :, :columns
        ]


def _pieces(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    step = max(1, _PIECE // columns)
    return ((first, min(first + step, rows)) for first in range(0, rows, step))
