"""Numbers of which there is one for each block of a tensor, as they are stored: its scales, or its
offsets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from ckptforge.dtypes import DType
from ckptforge.errors import FormatError, printable
from ckptforge.values import Read, Stored

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_NO_EXPONENT = 255  # stands for NaN
_WORD = 32  # bits


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of `stored`, with its axes in the order `axes` where they are others than the
    blocks'. With `exponents` bytes are powers of two, 2 ** (byte - 127). All are multiplied by the
    number in `outer`, or with `divides` divided by it. With `low_halves` integers of 64 bits hold
    the bits of a float32 in their low halves. `plus` is added to them; what runs over of integers
    that are packed into words of 32 bits is carried to the next of the word."""

    stored: Stored
    axes: tuple[int, ...] = ()
    exponents: bool = False
    outer: Stored | None = None
    divides: bool = False
    low_halves: bool = False
    plus: int = 0

    @property
    def inputs(self) -> tuple[Stored, ...]:
        """The stored tensors."""
        return (self.stored,) if self.outer is None else (self.stored, self.outer)

    @property
    def wide(self) -> bool:
        """Whether its numbers are of float64."""
        return self.stored.dtype.name == "float64"

    def memory(self, width: int) -> int:
        """Bytes of its numbers of `width` bytes each, while they are made."""
        stored = self.stored
        return stored.nbytes + (2 * width + 2 * (stored.dtype.per_byte > 1)) * stored.elements

    def identity(self) -> bytes:
        """What it is made of."""
        tensors = b"".join(tensor.identity() for tensor in self.inputs)
        told = (self.axes, self.exponents, self.divides, self.low_halves, self.plus)
        return tensors + repr(told).encode()

    def numbers(self, read: Read, dtype: DType) -> Array:
        """Its numbers in a floating-point dtype, of the shape that they have. `read` is that of
        `Step.prepare`. Raises `FormatError` for integers that hold no float32."""
        import numpy as np

        from ckptforge.run.casts import numpy_dtype

        stored, made = self.stored, numpy_dtype(dtype)
        if self.exponents or stored.dtype.name == "float8_e8m0":
            found = _powers(read(stored, None)).astype(made)
        elif stored.dtype.floating:
            found = read(stored, dtype)
        elif self.low_halves:
            found = self._halves(read(stored, None).view("<i8")).astype(made)
        elif self.plus and stored.dtype.itemsize == 1:
            bits = 8 // stored.dtype.per_byte
            found = _added(read(stored, None).view(np.uint8), self.plus, bits).astype(made)
        else:
            found = read(stored, None).astype(made)
        if self.outer is not None:
            outer = read(self.outer, dtype)
            with np.errstate(all="ignore"):
                found = found / outer if self.divides else found * outer
        return found.transpose(self.axes) if self.axes else found

    def _halves(self, integers: Array) -> Array:
        halves = integers.astype("<i4")
        if (halves != integers).any():
            raise FormatError(
                f"{self.stored.path}: {printable(self.stored.name)} holds integers that are more "
                "than the bits of a float32; the file is damaged, or of another program."
            )
        return halves.view("<f4")


def _added(numbers: Array, plus: int, bits: int) -> Array:
    """Integers of so many bits with `plus` added to each, in words of 32 bits, lowest first."""
    import numpy as np

    shifts = np.arange(0, _WORD, bits, dtype=np.uint32)
    wide = numbers.reshape(-1, len(shifts)).astype(np.uint32)
    wide <<= shifts
    words = np.bitwise_or.reduce(wide, axis=1)
    words += np.bitwise_or.reduce(np.uint32(plus) << shifts)
    np.right_shift(words[:, None], shifts, out=wide)
    wide &= np.uint32((1 << bits) - 1)
    return wide.astype(np.uint8).reshape(numbers.shape)


def _powers(exponents: Array) -> Array:
    """Bytes as powers of two."""
    import numpy as np

    raw = exponents.view(np.uint8)
    return np.where(raw == _NO_EXPONENT, math.nan, np.ldexp(1.0, raw.astype(np.int32) - 127))
