"""The mean of the rows of a tensor, made when it is first read, in constant memory."""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import NDArray

from ckptforge.composing import part_of
from ckptforge.dtypes import BY_NAME, DType
from ckptforge.examine.window import Window
from ckptforge.surgery.computed import COMPUTED
from ckptforge.values import Extent, Stored, Value, value_of

_AT_ONCE = 1 << 20  # numbers that are read at a time


def mean_rows(value: Value, tensor: str, shape: tuple[int, ...], dtype: DType) -> Value:
    """A tensor each of whose rows is the mean of those of a value, summed in float64."""
    row = math.prod(shape[1:]) * dtype.itemsize
    size, guard, made = math.prod(shape) * dtype.itemsize, threading.Lock(), list[bytes]()

    def make(offset: int, length: int) -> bytes:
        with guard:
            if not made:
                made.append(_mean(value, dtype))
        first, skip = divmod(offset, row)
        rows = -(-(offset + length) // row) - first
        return (made[0] * rows)[skip : skip + length]

    source = value.origin.identity().hex()
    path = COMPUTED.add(f"mean of {source} {list(shape)} {dtype}", size, make)
    extents = (Extent(0, 0, size),) if size else ()
    return value_of(Stored(path=path, name=tensor, dtype=dtype, shape=shape, extents=extents))


def _mean(value: Value, dtype: DType) -> bytes:
    """One row of the mean, in a dtype."""
    rows, *rest = value.shape
    total: NDArray[np.float64] = np.zeros(rest, np.float64)
    window, step = Window(), max(1, _AT_ONCE // max(1, math.prod(rest)))
    try:
        for start in range(0, rows, step):
            sides = ((start, min(start + step, rows)), *((0, n) for n in rest))
            total += window.read("mean", part_of(value, sides)).astype(np.float64).sum(axis=0)
    finally:
        window.close()
    return rounded(total / rows, dtype).tobytes()


def rounded(numbers: NDArray[np.float64], dtype: DType) -> NDArray[np.generic]:
    """Numbers in a dtype, rounded once."""
    from ckptforge.run.casts import cast_function, numpy_dtype

    flat = np.ascontiguousarray(numbers).reshape(-1)
    if dtype.name == "float64":
        return flat
    made = np.empty(flat.size, numpy_dtype(dtype))
    cast_function(BY_NAME["float64"], dtype)(flat, made)
    return made
