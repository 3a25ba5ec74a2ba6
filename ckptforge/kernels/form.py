"""What kernels are told, and tell, as `encode.c` and `cast.c` declare it."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_float, c_int32, c_int64


class Form(ctypes.Structure):
    """How magnitudes become codes. Of floating codes: the `smallest` normal number, the bits that a
    mantissa has fewer than a float32's, the lowest byte of what counts the codes up to 0, and the
    bit of the sign. Integers have 0 there. What is beyond `cap` becomes that."""

    _fields_ = (
        ("smallest", c_float),
        ("cap", c_float),
        ("shift", c_int32),
        ("least", c_int32),
        ("sign", c_int32),
    )


class Effects(ctypes.Structure):
    """What rounding did: numbers made 0, all that were changed; the squares of the changes and of
    the numbers, summed up, and the largest quotient of both in a block."""

    _fields_ = (
        ("zeros", c_int64),
        ("changed", c_int64),
        ("error", c_double),
        ("square", c_double),
        ("worst", c_double),
    )


class Range(ctypes.Structure):
    """Magnitudes of 16 bits that cast exactly, from `low` to `high`, all to (magnitude << shift) -
    less; none where `high` is below `low`."""

    _fields_ = (("low", c_int32), ("high", c_int32), ("shift", c_int32), ("less", c_int32))
