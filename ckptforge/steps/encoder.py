"""The arithmetic of codes and their scales, a piece that stays in a core's cache at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.errors import QuantisedError, printable
from ckptforge.kernels.library import library
from ckptforge.run.audit import CastCount
from ckptforge.run.casts import numpy_dtype
from ckptforge.steps.compiled_piece import CompiledPiece
from ckptforge.steps.encoded import Code, Encoded
from ckptforge.steps.piece import Piece

Array = NDArray[Any]
_SMALLEST = np.float32(2.0**-126)
_BIAS = 127
_LARGEST_IN_INT8 = float(np.finfo(np.float32).max) / 128  # a scale; the code -128 is a number too
_PIECE = 1 << 19  # numbers


def encode(into: Sequence[tuple[Encoded, Array]], numbers: Array, name: str) -> CastCount | None:
    """See `Encoded.encode`. Returns what codes did to the numbers; None where there are none."""
    code, block = into[0][0].code, into[0][0].block
    places = [(one, _place(one, out, len(numbers))) for one, out in into]
    coded = any(one.part == "codes" for one, _ in into)
    count = CastCount()
    for r0, r1, c0, c1 in _pieces(numbers.shape, block):
        piece = _piece(numbers[r0:r1, c0:c1], block)
        largest = piece.largest()
        if not np.isfinite(largest).all():
            raise QuantisedError(
                f"{printable(name)} is to be written as {code.name}, which has no code for NaN "
                "and infinities, and holds some: see them with stats, and mend the weights, or "
                "have tensors of this kind kept as they are."
            )
        scales = scales_of(code, largest)
        if code.dtype.name == "int8" and scales.max(initial=0.0) > _LARGEST_IN_INT8:
            raise QuantisedError(
                f"{printable(name)} is to be written as {code.name}, and holds the magnitude "
                f"{largest.max():.4g}: with its scale the code -128 would be infinite. See it "
                "with stats, and mend the weights, or have tensors of this kind kept as they are."
            )
        if coded:
            count.add(piece.round(code, scales))
        for one, place in places:
            high, width = one.unit
            stored = place[r0 // high : -(-r1 // high), c0 // width : -(-c1 // width)]
            if one.part == "codes":
                stored[:] = piece.codes if code.dtype.per_byte == 1 else _packed(piece.codes)
            else:
                stored[:] = scales if code.powers is None else np.frexp(scales)[1] - 1 + _BIAS
    return count if coded else None


def _piece(numbers: Array, block: tuple[int, int]) -> Piece | CompiledPiece:
    kernels = library()
    return CompiledPiece(kernels, numbers, *block) if kernels else Piece(numbers, *block)


def _place(one: Encoded, out: Array, height: int) -> Array:
    """Bytes as what is stored of so many rows."""
    dtype = numpy_dtype(one.stored_dtype) if one.part == "scales" else np.dtype(np.uint8)
    return out.view(dtype).reshape(-(-height // one.unit[0]), -1)


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


def _packed(codes: Array) -> Array:
    """Two in a byte, the first in the low bits."""
    pairs = codes.view("<u2")
    return np.asarray(np.bitwise_or(pairs, pairs >> np.uint16(4)), np.uint8)
