"""Magnitudes rounded to codes, to the nearest and ties to even, by operations that numpy does many
at a time: a table that is looked up takes longer than all of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ckptforge.run.casts import numpy_dtype
from ckptforge.steps.encoded import Code

Array = NDArray[Any]
_EXPONENT = np.uint32(0x7F800000)  # of a float32
_BIAS, _BITS = 127, 23  # of one, and of its mantissa
_ALL_BITS = np.uint8(255)


def round_magnitudes(
    code: Code, scaled: Array, near: Array, work: tuple[Array, Array], codes: Array
) -> None:
    """Fills `near` with the numbers that codes stand for which are nearest to `scaled`, of float32
    and none below 0, and `codes`, of bytes, with those, without signs. With scales that are powers
    of two the largest code is for what lies beyond it, too; other scales leave nothing beyond. All
    arrays are of one shape; those in `work`, of float32, hold nothing afterwards."""
    if not code.dtype.floating:
        np.rint(scaled, out=near)
        np.copyto(codes, near, casting="unsafe")
        return
    shift, smallest, least = form_of(code)
    sums, other = work
    within = scaled
    if code.powers is not None:
        within = np.minimum(scaled, np.float32(code.largest), out=near)
    # 2 ** (shift + exponent) has the distance between two codes as that of its last bit: added up
    # with it a number is rounded, and the sum's last bits count the codes up to it.
    np.bitwise_and(within.view(np.uint32), _EXPONENT, out=other.view(np.uint32))
    np.maximum(other, smallest, out=other)
    np.multiply(other, np.float32(1 << shift), out=other)
    np.add(within, other, out=sums)
    np.subtract(sums, other, out=near)
    # Its exponent, moved to where a code has its own, counts those before.
    bits, exponents = sums.view(np.uint32), other.view(np.uint32)
    np.right_shift(bits, np.uint32(shift), out=exponents)
    np.add(bits, exponents, out=bits)
    np.copyto(codes, bits, casting="unsafe")
    np.subtract(codes, least, out=codes)


def with_signs(code: Code, codes: Array, negative: Array, work: Array) -> None:
    """Makes codes of magnitudes those of numbers that are negative where that is said."""
    signs = negative.view(np.uint8)
    if code.dtype.floating:
        np.multiply(signs, np.uint8(0x80 >> 8 - 8 // code.dtype.per_byte), out=work)
        np.bitwise_or(codes, work, out=codes)
        return
    np.multiply(signs, _ALL_BITS, out=work)  # the complement, and 1 more
    np.bitwise_xor(codes, work, out=codes)
    np.subtract(codes, work, out=codes)


@cache
def form_of(code: Code) -> tuple[int, np.float32, np.uint8]:
    """Of floating codes: (bits that a mantissa has fewer than that of a float32, the smallest
    number that has all of them, the lowest byte of what counts the codes up to 0)."""
    finfo: Any = ml_dtypes.finfo
    info = finfo(numpy_dtype(code.dtype))
    shift = _BITS - int(info.nmant)
    least = int(info.minexp) + _BIAS + shift << int(info.nmant)
    return shift, np.float32(info.smallest_normal), np.uint8(least & 0xFF)
