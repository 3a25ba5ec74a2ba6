"""Casting numbers between float dtypes, with a count of what every cast did to them. Round to
nearest, ties to even.

16-bit to 16-bit is a table of all 65,536 values, made once by way of float32 (exact on the way in,
one rounding on the way out). float64 to bfloat16 goes through float32, where numbers that the first
rounding made ties of the second are moved off them, to the side that they came from. NaN stays NaN,
zeros keep their sign.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ckptforge.dtypes import DType
from ckptforge.kernels.form import Range
from ckptforge.kernels.library import library
from ckptforge.run.audit import CastCount
from ckptforge.run.buffers import copy_runs

Array = NDArray[Any]
# Elements of 16 bits cast at a time; of wider ones fewer, so that as many bytes stay in a core's
# cache. Each of the operations on them lets go of the interpreter, and threads that take turns at
# it wait for one another: two cast 1.0 to 1.5 ns a number at 2^17, 0.5 to 0.6 at 2^19, as one alone
# does 0.8.
STEP = 1 << 19
_SIGN, _MAGNITUDE = np.uint16(0x8000), np.uint16(0x7FFF)
EXACT, ROUNDED, UNDERFLOW, OVERFLOW = 0, 1, 2, 3


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The numpy dtype of a dtype; of one that numpy doesn't have, raw bytes."""
    name = dtype.numpy or f"V{dtype.itemsize}"
    return np.dtype(getattr(ml_dtypes, name, name))


Cast = Callable[[Array, Array], CastCount]


class _Scratch(threading.local):
    """A thread's memory for intermediate results: fresh memory costs more than they do."""

    def __init__(self) -> None:
        self.near, self.back = np.empty(STEP, np.float32), np.empty(STEP, np.float64)
        self.work, self.beyond = np.empty(STEP, np.uint16), np.empty(STEP, np.bool_)
        self.effects = np.empty(STEP, np.uint8)


_scratch = _Scratch()


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
        step = 2 * STEP // max(numbers.itemsize, out.itemsize, 2)
        with np.errstate(all="ignore"):
            for start in range(0, numbers.size, step):
                piece, place = numbers[start : start + step], out[start : start + step]
                made = place if place.flags.aligned else np.empty_like(place, subok=False)
                cast(piece if piece.flags.aligned else piece.copy(), made, count)
                if made is not place:
                    copy_runs(made, place)
        return count

    return whole


def _plain(numbers: Array, out: Array) -> None:
    np.copyto(out, numbers, casting="unsafe")


@cache
def rounding(target: DType) -> Cast:
    """The function that rounds sums of float64 into a flat array of `target`, once. Results that
    aren't finite count as overflowed. For dtypes below float32 the rest is counted as of sums of
    float32, else not: nearly all are rounded."""
    wide, dtype = target.itemsize > 2, numpy_dtype(target)

    def cast(sums: Array, out: Array, count: CastCount) -> None:
        made = out.view(dtype)
        near = made if wide else _scratch.near[: sums.size]
        _plain(sums, near)
        if not np.isfinite(np.add.reduce(near)):  # one of them isn't, or all together are too large
            count.overflowed += near.size - int(np.count_nonzero(np.isfinite(near)))
        if not wide:
            if target.name == "bfloat16":
                _off_ties(sums, near)
                _plain(near, made)
            else:
                _plain(sums, made)
            _count(near, made, count)

    return _by_pieces(cast)


def _f64_to_bf16(numbers: Array, out: Array) -> None:
    near = _scratch.near[: numbers.size]
    _plain(numbers, near)
    _off_ties(numbers, near)
    np.copyto(out, near, casting="unsafe")


def _off_ties(numbers: Array, near: Array) -> None:
    """Moves float32 numbers that lie in the middle between two of bfloat16 and aren't what they
    were rounded from towards that."""
    found = _scratch.beyond[: near.size]
    low_halves = _scratch.back.view(np.uint32)[: near.size]
    np.left_shift(near.view(np.uint32), 16, out=low_halves)
    ties = np.flatnonzero(np.equal(low_halves, 1 << 31, out=found))
    if ties.size:
        exact, rounded = numbers[ties], near[ties].astype(np.float64)
        outwards = (exact > rounded) == (rounded > 0)
        step = np.where(exact == rounded, 0, np.where(outwards, 1, -1))
        near.view(np.int32)[ties] += step.astype(np.int32)


def _count(numbers: Array, made: Array, count: CastCount) -> None:
    back, found = _scratch.back.view(numbers.dtype)[: made.size], _scratch.beyond[: made.size]
    _plain(made, back)
    changed = int(np.count_nonzero(np.not_equal(back, numbers, out=found)))
    if not changed:
        return
    if made.itemsize == 2 and (zeros := _zeros_of_finite(made)) is not None:
        if zeros:
            zeros -= int(np.count_nonzero(np.equal(numbers, 0, out=found)))
        count.underflowed += zeros
        count.rounded += changed - zeros
        return
    changed -= int(np.count_nonzero(np.not_equal(numbers, numbers, out=found)))
    overflowed, underflowed = (_gained(test, numbers, back) for test in (np.isinf, _is_zero))
    count.overflowed += overflowed
    count.underflowed += underflowed
    count.rounded += changed - overflowed - underflowed


def _zeros_of_finite(made: Array) -> int | None:
    """How many numbers of 16 bits are 0, by their bits, which takes less than to look at what they
    were; None where not all are finite."""
    magnitudes = _scratch.work[: made.size]
    np.bitwise_and(made.view(np.uint16), _MAGNITUDE, out=magnitudes)
    if magnitudes.max() >= np.array(np.inf, made.dtype).view(np.uint16):
        return None
    return made.size - int(np.count_nonzero(magnitudes))


def _gained(test: Callable[..., Array], before: Array, after: Array) -> int:
    """How many numbers a test is true of, beyond those of which it was before and stays so."""
    held = _scratch.beyond[: after.size]
    found = int(np.count_nonzero(test(after, out=held)))
    return found - int(np.count_nonzero(test(before, out=held))) if found else 0


def _is_zero(numbers: Array, out: Array) -> Array:
    return np.equal(numbers, 0, out=out)


def _byte_cast(source: DType, target: DType) -> Cast:
    """From numbers of eight bits or fewer to wider ones, which hold all of them."""
    codes = 1 << 8 // source.per_byte
    table = np.arange(codes, dtype=np.uint8).view(numpy_dtype(source)).astype(numpy_dtype(target))

    def cast(numbers: Array, out: Array, count: CastCount) -> None:
        np.take(table, numbers.view(np.uint8), out=out, mode="clip")

    if codes < 256 or target.itemsize > 4:
        return _by_pieces(cast)
    # Two numbers are looked up in the time of one: of 65,536 pairs, half a megabyte.
    pairs = np.empty((codes, codes, 2), table.dtype)
    pairs[..., 0], pairs[..., 1] = table, table[:, None]
    wide = np.dtype(f"u{2 * table.itemsize}")
    flat = pairs.reshape(-1).view(wide)

    def cast_pairs(numbers: Array, out: Array, count: CastCount) -> None:
        even = numbers.size // 2 * 2
        at, made = numbers.view(np.uint8)[:even].view("<u2"), out.view(table.dtype)
        np.take(flat, at, out=made[:even].view(wide), mode="clip")
        cast(numbers[even:], made[even:], count)

    return _by_pieces(cast_pairs)


def effects_of(numbers: Array, made: Array) -> Array:
    """What a cast did to each number, as bytes: `EXACT`, `ROUNDED`, `UNDERFLOW` or `OVERFLOW`."""
    with np.errstate(all="ignore"):
        back = made.astype(numbers.dtype)
        found: Array = ((back != numbers) & (numbers == numbers)).astype(np.uint8)  # ROUNDED
        if (lost := (back == 0) & (numbers != 0)).any():
            found[lost] = UNDERFLOW
        if (beyond := np.isinf(back) & np.isfinite(numbers)).any():
            found[beyond] = OVERFLOW
    return found


def _table_cast(source: DType, target: DType) -> Cast:
    every = np.arange(1 << 16, dtype=np.uint16).view(numpy_dtype(source))
    with np.errstate(all="ignore"):
        wide = every.astype(np.float32)
        made = wide.astype(numpy_dtype(target))
    effect = effects_of(wide, made)
    table = made.view(np.uint16)
    exact = _exact_range(source, target)
    kernels = library()
    if kernels is not None:
        return _compiled_cast(kernels, table, effect, exact)

    def cast(numbers: Array, out: Array, count: CastCount) -> None:
        bits, made = numbers.view(np.uint16), out.view(np.uint16)
        if exact is None:
            effects = np.take(effect, bits, out=_scratch.effects[: bits.size], mode="clip")
            np.take(table, bits, out=made, mode="clip")
        else:
            low, high, shift = exact
            work, beyond = _scratch.work[: bits.size], _scratch.beyond[: bits.size]
            np.add(bits, bits, out=work)  # magnitudes, doubled; numpy's shifts take twice as long
            np.subtract(work, np.uint16(2 * low), out=work)
            np.greater(work, np.uint16(2 * (high - low)), out=beyond)
            np.multiply(bits, np.uint16(1 << shift), out=made)
            np.subtract(made, np.uint16(((low << shift) - int(table[low])) & 0xFFFF), out=made)
            np.bitwise_and(bits, _SIGN, out=work)
            np.bitwise_or(made, work, out=made)
            suspects = np.flatnonzero(beyond)
            odd = bits[suspects]
            made[suspects] = table[odd]
            effects = effect[odd]
        count.rounded += int(np.count_nonzero(effects == ROUNDED))
        count.underflowed += int(np.count_nonzero(effects == UNDERFLOW))
        count.overflowed += int(np.count_nonzero(effects == OVERFLOW))

    return _by_pieces(cast)


def _compiled_cast(
    kernels: ctypes.CDLL, table: Array, effect: Array, exact: tuple[int, int, int] | None
) -> Cast:
    """The same by the compiled kernel, to which a table says both at once."""
    both = table | effect.astype(np.uint32) << np.uint32(16)
    within = Range(1, 0, 0, 0)
    if exact is not None:
        low, high, shift = exact
        within = Range(low, high, shift, (low << shift) - int(table[low]) & 0xFFFF)

    def cast(numbers: Array, out: Array) -> CastCount:
        assert out.flags.c_contiguous and out.size == numbers.size
        numbers, effects = np.ascontiguousarray(numbers), np.zeros(4, np.int64)
        places = out.ctypes.data, effects.ctypes.data
        kernels.ckptforge_cast(numbers.ctypes.data, numbers.size, both.ctypes.data, within, *places)
        counts = (int(effects[one]) for one in (OVERFLOW, UNDERFLOW, ROUNDED))
        return CastCount(numbers.size, *counts)

    return cast


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
