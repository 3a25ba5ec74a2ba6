"""Casting numbers between float dtypes, with a count of what every cast did to them. Round to
nearest, ties to even.

16-bit to 16-bit is a table of all 65,536 values, made once by way of float32 (exact on the way in,
one rounding on the way out). float64 to bfloat16 goes through float32 rounded to odd, which makes
the second rounding the only one (Boldo and Melquiond, "Emulation of FMA and correctly rounded
sums", 2008). NaN stays NaN, zeros keep their sign.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ckptforge.dtypes import DType
from ckptforge.run.audit import CastCount
from ckptforge.run.buffers import copy_runs

Array = NDArray[Any]
# Elements cast at a time. Each of the operations on them lets go of the interpreter, and threads
# that take turns at it wait for one another: two cast 1.0 to 1.5 ns a number at 2^17, 0.5 to 0.6 at
# 2^19, as one alone does 0.8.
STEP = 1 << 19
_SIGN = np.uint16(0x8000)
_EXACT, _ROUNDED, _UNDERFLOW, _OVERFLOW = 0, 1, 2, 3


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The numpy dtype of a dtype; of one that numpy doesn't have, raw bytes."""
    name = dtype.numpy or f"V{dtype.itemsize}"
    return np.dtype(getattr(ml_dtypes, name, name))


Cast = Callable[[Array, Array], CastCount]


@cache
def cast_function(source: DType, target: DType) -> Cast:
    """The function that casts a flat array of `source` into one of `target`, both as numpy dtypes,
    and counts."""
    if source.itemsize == target.itemsize == 2:
        return _table_cast(source, target)
    if source.itemsize == 1:
        return _byte_cast(source, target)
    convert = _f64_to_bf16 if (source.name, target.name) == ("float64", "bfloat16") else _plain

    def cast(numbers: Array, out: Array, count: CastCount) -> None:
        convert(numbers, out)
        if target.itemsize <= source.itemsize:
            _count(numbers, out, count)

    return _by_pieces(cast)


def _by_pieces(cast: Callable[[Array, Array, CastCount], None]) -> Cast:
    """A cast of any length from one of at most STEP numbers, which lie aligned: numpy takes others
    in small buffers."""

    def whole(numbers: Array, out: Array) -> CastCount:
        count = CastCount(values=numbers.size)
        with np.errstate(all="ignore"):
            for start in range(0, numbers.size, STEP):
                piece, place = numbers[start : start + STEP], out[start : start + STEP]
                made = place if place.flags.aligned else np.empty_like(place, subok=False)
                cast(piece if piece.flags.aligned else piece.copy(), made, count)
                if made is not place:
                    copy_runs(made, place)
        return count

    return whole


def _plain(numbers: Array, out: Array) -> None:
    np.copyto(out, numbers, casting="unsafe")


def _f64_to_bf16(numbers: Array, out: Array) -> None:
    """Truncates to float32 and sets the last bit if anything was cut off, then rounds that once."""
    near = numbers.astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.uint32)
    inexact = (back != numbers) & (numbers == numbers)
    bits -= (inexact & (np.abs(back) > np.abs(numbers))).astype(np.uint32)
    bits |= inexact.astype(np.uint32)
    np.copyto(out, near, casting="unsafe")


def _count(numbers: Array, made: Array, count: CastCount) -> None:
    back = made.astype(numbers.dtype)
    changed = int(np.count_nonzero(back != numbers)) - int(np.count_nonzero(numbers != numbers))
    if not changed:
        return
    overflowed = int(np.count_nonzero(np.isinf(back))) - int(np.count_nonzero(np.isinf(numbers)))
    underflowed = int(np.count_nonzero(back == 0)) - int(np.count_nonzero(numbers == 0))
    count.overflowed += overflowed
    count.underflowed += underflowed
    count.rounded += changed - overflowed - underflowed


def _byte_cast(source: DType, target: DType) -> Cast:
    """From floats of eight bits to wider ones, which hold all of them."""
    table = np.arange(1 << 8, dtype=np.uint8).view(numpy_dtype(source)).astype(numpy_dtype(target))

    def cast(numbers: Array, out: Array, count: CastCount) -> None:
        np.take(table, numbers.view(np.uint8), out=out, mode="clip")

    return _by_pieces(cast)


class _Scratch(threading.local):
    """A thread's memory for intermediate results: fresh memory costs more than they do."""

    def __init__(self) -> None:
        self.work = np.empty(STEP, np.uint16)
        self.beyond = np.empty(STEP, np.bool_)


def _table_cast(source: DType, target: DType) -> Cast:
    every = np.arange(1 << 16, dtype=np.uint16).view(numpy_dtype(source))
    with np.errstate(all="ignore"):
        wide = every.astype(np.float32)
        made = wide.astype(numpy_dtype(target))
        back = made.astype(np.float32)
        effect = np.full(1 << 16, _EXACT, np.uint8)
        effect[(back != wide) & (wide == wide)] = _ROUNDED
        effect[(back == 0) & (wide != 0)] = _UNDERFLOW
        effect[np.isinf(back) & np.isfinite(wide)] = _OVERFLOW
    table = made.view(np.uint16)
    exact = _exact_range(source, target)
    scratch = _Scratch()

    def cast(numbers: Array, out: Array, count: CastCount) -> None:
        bits, made = numbers.view(np.uint16), out.view(np.uint16)
        if exact is None:
            np.take(table, bits, out=made, mode="clip")
            odd = bits
        else:
            low, high, shift = exact
            work, beyond = scratch.work[: bits.size], scratch.beyond[: bits.size]
            np.left_shift(bits, 1, out=work)  # magnitudes, doubled
            np.subtract(work, np.uint16(2 * low), out=work)
            np.greater(work, np.uint16(2 * (high - low)), out=beyond)
            np.left_shift(bits, shift, out=made)
            np.subtract(made, np.uint16(((low << shift) - int(table[low])) & 0xFFFF), out=made)
            np.bitwise_and(bits, _SIGN, out=work)
            np.bitwise_or(made, work, out=made)
            suspects = np.flatnonzero(beyond)
            odd = bits[suspects]
            made[suspects] = table[odd]
        effects = np.bincount(effect[odd], minlength=4)
        count.rounded += int(effects[_ROUNDED])
        count.underflowed += int(effects[_UNDERFLOW])
        count.overflowed += int(effects[_OVERFLOW])

    return _by_pieces(cast)


def _exact_range(source: DType, target: DType) -> tuple[int, int, int] | None:
    """(first, last, k): the bits m of the magnitudes that are normal numbers of a target with a
    longer mantissa, where most numbers lie. They cast exactly, all to `(m << k) - constant`, which
    is faster done than looked up. None where the mantissa is shorter."""
    own, other = map(ml_dtypes.finfo, (numpy_dtype(source), numpy_dtype(target)))
    if other.nmant < own.nmant:
        return None
    ends = np.array([other.smallest_normal, other.max], numpy_dtype(source))
    low, high = ends.view(np.uint16).tolist()
    return low, high - bool(ends[1] > other.max), other.nmant - own.nmant
