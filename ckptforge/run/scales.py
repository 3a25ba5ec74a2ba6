"""Quantised tensors as what they stand for: (number - offset) · scale, in float32, where they are
read.

Sources: `weight_block_size` and per-tensor scales of transformers' FP8 configurations
(integrations/finegrained_fp8.py, `Fp8Dequantize`), which MindFormers' `weight_dequant` computes
alike; compressed-tensors' `dequantize`; MindStudio's ModelSlim ((weight - weight_offset) ·
weight_scale); the OCP microscaling formats for scales that are powers of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.dtypes import DType
from ckptforge.errors import FormatError, printable
from ckptforge.formats.entry import Scaled, TensorEntry
from ckptforge.run.casts import numpy_dtype
from ckptforge.run.low_rank import numbers_of
from ckptforge.run.tiles import Spans, windows

Array = NDArray[Any]
_LARGEST = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0, "int8": 128.0}  # magnitude of a number
_PIECE = 1 << 16  # elements that are scaled at a time
_NO_EXPONENT = 255  # stands for NaN


def scale_bytes(scaled: Scaled) -> int:
    """Memory that the scales and offsets of one tensor take, as numbers and while they are read."""
    tensors = (scaled.scale, *(() if scaled.offset is None else (scaled.offset,)))
    width = 8 if scaled.scale.dtype.name == "float64" else 4
    return sum(tensor.nbytes + 2 * width * tensor.elements for tensor in tensors)


class Scales:
    """The scales and offsets of one tensor, in memory. `read` gives the bytes of a tensor.

    Raises `FormatError` for scales that aren't finite, or make numbers that aren't.
    """

    def __init__(
        self, source: TensorEntry, scaled: Scaled, read: Callable[[TensorEntry], Array]
    ) -> None:
        dtype = source.working_dtype
        *leading, columns = zip(source.shape or (1,), scaled.block or (1,), strict=True)
        self._leading, (self._columns, block) = leading, columns
        self._block = min(block, max(self._columns, 1))
        across = -(-self._columns // self._block) if self._columns else 0
        scales = (
            _exponents(read(scaled.scale), dtype)
            if _is_exponents(scaled)
            else numbers_of(read(scaled.scale), scaled.scale, dtype)
        )
        self._scales = scales.reshape(-1, across)
        self._offsets = (
            None
            if scaled.offset is None
            else _integers(read(scaled.offset), scaled.offset, dtype).reshape(-1, across)
        )
        self._of_infinities = source.dtype.name == "float8_e5m2" and bool((self._scales == 0).any())
        self._refuse_infinite(source, scaled)

    def _refuse_infinite(self, source: TensorEntry, scaled: Scaled) -> None:
        with np.errstate(all="ignore"):
            largest = self._scales.dtype.type(_LARGEST.get(source.dtype.name, 0.0))
            shifted = largest if self._offsets is None else largest + np.abs(self._offsets)
            if np.isfinite(self._scales * shifted).all():
                return
        where = f"{scaled.scale.path}: {printable(scaled.scale.name)}"
        raise FormatError(
            f"{where} holds scales that aren't finite, or make numbers that aren't; "
            "the file is damaged."
        )

    def apply(self, numbers: Array, start: int, spans: Spans) -> int:
        """Makes what the numbers stand for of what was read: `numbers`, in the working dtype, are
        the tensor's `spans`, counted from element `start`. Returns how many infinities met a scale
        of 0, which makes NaN."""
        undefined = 0
        for at, row, count, c0, c1 in windows(start, spans, self._columns):
            window = numbers[at : at + count * (c1 - c0)].reshape(count, c1 - c0)
            for first, last in _pieces(count, c1 - c0):
                undefined += self._scale(window[first:last], row + first, c0)
        return undefined

    def _scale(self, window: Array, row: int, column: int) -> int:
        rows = self._grid_rows(np.arange(row, row + len(window)))
        if (rows == rows[0]).all():
            rows = rows[:1]
        if self._offsets is not None:
            window -= self._spread(self._offsets, rows, column, window.shape[1])
        scales = self._spread(self._scales, rows, column, window.shape[1])
        undefined = (
            int(np.count_nonzero(np.isinf(window) & (scales == 0))) if self._of_infinities else 0
        )
        with np.errstate(invalid="ignore"):
            window *= scales
        return undefined

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


def _is_exponents(scaled: Scaled) -> bool:
    return scaled.exponents or scaled.scale.dtype.name == "float8_e8m0"


def _exponents(raw: Array, dtype: DType) -> Array:
    """Bytes as powers of two."""
    made = np.ldexp(1.0, raw.view(np.uint8).astype(np.int32) - 127)
    made[raw.view(np.uint8) == _NO_EXPONENT] = math.nan
    return made.astype(numpy_dtype(dtype))


def _integers(raw: Array, entry: TensorEntry, dtype: DType) -> Array:
    """Offsets, which may be integers or floats, as numbers."""
    if entry.dtype.floating:
        return numbers_of(raw, entry, dtype)
    return raw.view(numpy_dtype(entry.dtype)).astype(numpy_dtype(dtype))
