"""The arithmetic of codes and their scales, a piece that stays in a core's cache at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.errors import QuantisedError, printable
from ckptforge.run.audit import CastCount
from ckptforge.run.casts import numpy_dtype
from ckptforge.steps.encoded import Code, Encoded

Array = NDArray[Any]
_SMALLEST = np.float32(2.0**-126)
_BIAS = 127
_LOWER, _HALF = np.uint32(0xFFFF), np.uint32(16)
_PIECE = 1 << 16  # numbers


def encode(step: Encoded, numbers: Array, name: str, out: Array) -> CastCount | None:
    """See `Encoded.encode`."""
    code, (rows, columns) = step.code, step.block
    high, width = step.unit
    dtype = numpy_dtype(step.stored_dtype) if step.part == "scales" else np.dtype(np.uint8)
    place = out.view(dtype).reshape(-(-len(numbers) // high), -1)
    count = CastCount()
    for r0, r1, c0, c1 in _pieces(numbers.shape, step.block):
        blocks = _Blocks(numbers[r0:r1, c0:c1], rows, columns)
        largest = blocks.reduced(np.maximum, np.abs(blocks.numbers))
        if not np.isfinite(largest).all():
            raise QuantisedError(
                f"{printable(name)} is to be written as {code.name}, which has no code for NaN "
                "and infinities, and holds some."
            )
        scales = scales_of(code, largest)
        stored = place[r0 // high : -(-r1 // high), c0 // width : -(-c1 // width)]
        if step.part == "scales":
            stored[:] = scales if code.powers is None else np.frexp(scales)[1] - 1 + _BIAS
            continue
        scaled = blocks.numbers / blocks.spread(scales)
        codes = codes_of(code, scaled)
        raw = codes.reshape(r1 - r0, c1 - c0)
        stored[:] = raw if code.dtype.per_byte == 1 else _packed(raw)
        count.add(_count(code, blocks, scaled, codes, scales))
    return count if step.part == "codes" else None


class _Blocks:
    """A piece of whole blocks: in one row of them, or, of blocks of one row, as [rows, blocks,
    columns of a block]."""

    def __init__(self, piece: Array, rows: int, columns: int) -> None:
        self._flat = rows > 1
        self._columns = columns
        self.numbers = piece if self._flat else piece.reshape(len(piece), -1, columns)
        self._starts = np.arange(0, piece.shape[1], columns)

    def reduced(self, operation: np.ufunc, numbers: Array) -> Array:
        """One number for each block, of those of the piece: [rows of blocks, blocks]."""
        if not self._flat:
            return np.asarray(operation.reduce(numbers, axis=2))
        return np.asarray(operation.reduceat(operation.reduce(numbers, axis=0), self._starts))[None]

    def spread(self, grid: Array) -> Array:
        """A number for each of the piece, of its block."""
        if not self._flat:
            return np.asarray(grid[:, :, None])
        wide = np.repeat(grid, self._columns, axis=1)
        return np.asarray(wide[:, : self.numbers.shape[1]])


def _pieces(shape: tuple[int, ...], block: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """(first row, last, first column, last) of pieces of whole blocks."""
    (height, width), (rows, columns) = shape, block
    broad = min(width, max(_PIECE // rows // columns, 1) * columns)
    high = rows if rows > 1 else max(_PIECE // broad, 1)
    for r0 in range(0, height, high):
        for c0 in range(0, width, broad):
            yield r0, min(r0 + high, height), c0, min(c0 + broad, width)


def scales_of(code: Code, largest: Array) -> Array:
    """The scale of each block, float32, from its largest magnitude; 1 where all are 0."""
    if code.powers is None:
        made = np.maximum(largest / np.float32(code.largest), _SMALLEST)
    else:
        exponents = np.frexp(largest)[1] - 1 - code.powers
        made = np.ldexp(np.float32(1), np.clip(exponents, 1 - _BIAS, _BIAS))
    scales = np.where(largest > 0, made, np.float32(1))
    return np.asarray(scales, np.float32)


def codes_of(code: Code, scaled: Array) -> Array:
    """The bytes of the codes of float32 numbers: the nearest, ties to even, and the largest for
    those beyond it."""
    if not code.dtype.floating:
        near = np.rint(scaled).clip(-code.largest, code.largest).astype(np.int8)
        return np.asarray(near.view(np.uint8))
    # The upper half of a float32 tells its code, which is far shorter, if its lowest bit is set
    # where anything follows.
    bits = scaled.view(np.uint32)
    rest = np.bitwise_and(bits, _LOWER)
    np.not_equal(rest, 0, out=rest, casting="unsafe")
    upper = np.right_shift(bits, _HALF, dtype=np.uint32)
    taken = np.take(_table(code), np.bitwise_or(upper, rest, out=upper), mode="clip")
    return np.asarray(taken)


@cache
def _table(code: Code) -> Array:
    """The code of each float32 whose lower half is 0, by its upper half."""
    every = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):
        near = np.clip(np.nan_to_num(every, nan=0.0), -code.largest, code.largest)
    return np.asarray(near.astype(numpy_dtype(code.dtype)).view(np.uint8))


@cache
def _numbers(code: Code) -> Array:
    """The number that each byte of a code stands for."""
    count = 1 << 8 // code.dtype.per_byte
    made = np.arange(count, dtype=np.uint8).view(numpy_dtype(code.dtype)).astype(np.float32)
    return np.asarray(made)


def numbers_of(code: Code, codes: Array) -> Array:
    """The float32 numbers that bytes of codes are, without scales."""
    return np.asarray(np.take(_numbers(code), codes, mode="clip"))


def _packed(codes: Array) -> Array:
    """Two in a byte, the first in the low bits."""
    return np.asarray(codes[:, 0::2] | codes[:, 1::2] << np.uint8(4))


def _count(code: Code, blocks: _Blocks, scaled: Array, codes: Array, scales: Array) -> CastCount:
    """What became of numbers, measured before the scales, so that nothing is too small for it."""
    made = numbers_of(code, codes)
    zeros = int(np.count_nonzero(scaled != 0)) - int(np.count_nonzero(made != 0))
    made -= scaled
    changed = int(np.count_nonzero(made != 0))  # of bools, which are counted ten times as fast
    weights = np.square(scales, dtype=np.float64)
    errors = blocks.reduced(np.add, np.square(made, out=made))
    squares = blocks.reduced(np.add, np.square(scaled, out=scaled))
    worst = np.divide(errors, squares, out=np.zeros_like(errors), where=squares > 0)
    return CastCount(
        values=scaled.size,
        underflowed=zeros,
        rounded=changed - zeros,
        error=float((errors * weights).sum()),
        square=float((squares * weights).sum()),
        worst=float(worst.max()),
    )
