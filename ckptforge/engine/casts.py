"""Casting numbers between float dtypes, with a count of what every cast did to them. Round to nearest, ties to even.

16-bit to 16-bit is a table of all 65,536 values, made once by way of float32 (exact on the way in, one rounding on the way
out). float64 to bfloat16 goes through float32 rounded to odd, which makes the second rounding the only one (Boldo and
Melquiond, "Emulation of FMA and correctly rounded sums", 2008). NaN stays NaN, zeros keep their sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ckptforge.dtypes import DType

Array = NDArray[Any]
STEP = 1 << 17  # elements cast at a time: stays in the cache of a core
_EXACT, _ROUNDED, _UNDERFLOW, _OVERFLOW = 0, 1, 2, 3


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The numpy dtype of a castable dtype."""
    return np.dtype(ml_dtypes.bfloat16 if dtype.name == "bfloat16" else dtype.name)


@dataclass
class CastCount:
    """What casts did to `values` numbers: finite made infinite, nonzero made zero, or rounded otherwise. NaN counts as none."""

    values: int = 0
    overflowed: int = 0
    underflowed: int = 0
    rounded: int = 0

    def add(self, other: CastCount) -> None:
        self.values += other.values
        self.overflowed += other.overflowed
        self.underflowed += other.underflowed
        self.rounded += other.rounded


@dataclass
class Audit:
    """Cast counts by (tensor group, from dtype, to dtype)."""

    counts: dict[tuple[str, str, str], CastCount] = field(default_factory=dict)

    def add(self, group: str, source: DType, target: DType, count: CastCount) -> None:
        self.counts.setdefault((group, source.name, target.name), CastCount()).add(count)

    def merge(self, other: Audit) -> None:
        for key, count in other.counts.items():
            self.counts.setdefault(key, CastCount()).add(count)

    @property
    def overflowed(self) -> int:
        return sum(count.overflowed for count in self.counts.values())


Cast = Callable[[Array, Array], CastCount]


@cache
def cast_function(source: DType, target: DType) -> Cast:
    """The function that casts a flat array of `source` into one of `target`, both as numpy dtypes, and counts."""
    if source.itemsize == target.itemsize == 2:
        return _table_cast(source, target)
    convert = _f64_to_bf16 if (source.name, target.name) == ("float64", "bfloat16") else _plain
    widening = target.itemsize > source.itemsize

    def cast(numbers: Array, out: Array) -> CastCount:
        count = CastCount(values=numbers.size)
        with np.errstate(all="ignore"):
            for start in range(0, numbers.size, STEP):
                piece, made = numbers[start : start + STEP], out[start : start + STEP]
                convert(piece, made)
                if not widening:
                    _count(piece, made, count)
        return count

    return cast


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
    # Most values lie in a range of magnitudes that casts exactly; only the others need looking up.
    magnitudes = np.flatnonzero(effect[: 1 << 15] == _EXACT)
    low, high = _longest_run(magnitudes)

    def cast(numbers: Array, out: Array) -> CastCount:
        count = CastCount(values=numbers.size)
        bits, result = numbers.view(np.uint16), out.view(np.uint16)
        for start in range(0, bits.size, STEP):
            piece = bits[start : start + STEP]
            np.take(table, piece, out=result[start : start + STEP], mode="clip")
            suspects = piece[((piece & 0x7FFF) - np.uint16(low)) > np.uint16(high - low)]
            if suspects.size:
                effects = np.bincount(effect[suspects], minlength=4)
                count.rounded += int(effects[_ROUNDED])
                count.underflowed += int(effects[_UNDERFLOW])
                count.overflowed += int(effects[_OVERFLOW])
        return count

    return cast


def _longest_run(numbers: NDArray[np.intp]) -> tuple[int, int]:
    """(first, last) of the longest run of consecutive numbers."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    longest = max(runs, key=len)
    return int(longest[0]), int(longest[-1])
