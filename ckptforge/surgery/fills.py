"""What fills new indexes of an axis: zeros, the mean of the old ones, a copy of one, or numbers of
the normal distribution by a counter-based generator."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import msgspec

from ckptforge.dtypes import DType
from ckptforge.errors import UsageError
from ckptforge.spelling import option
from ckptforge.surgery.along import Entry, Filling, Pick
from ckptforge.surgery.computed import COMPUTED
from ckptforge.values import Extent, Stored, Value, value_of
from ckptforge.wording import nearest

FILLS = ("zero", "mean", "copy:INDEX", "normal:STD,SEED")


class Fill(msgspec.Struct, frozen=True, kw_only=True):
    """How new indexes are filled; `copy` is the old index, `std` and `seed` are of the normal
    distribution."""

    kind: str
    copy: int = 0
    std: float = 0.0
    seed: int = 0

    def entries(self, count: int, length: int) -> tuple[Entry, ...]:
        """The entries of `count` new indexes of an axis of this length before. Raises `UsageError`
        for the copy of one that there isn't."""
        if self.kind == "copy":
            if not 0 <= self.copy < length:
                raise UsageError(
                    f"{option('fill', f'copy:{self.copy}')}: the axis has {length} indexes, from 0."
                )
            return ((Pick(self.copy),),) * count
        if self.kind == "mean":
            return (tuple(Pick(i, 1 / length) for i in range(length)),) * count
        return (None,) * count

    def filling(self) -> Filling:
        """What fills a logical tensor; optimizer state is filled with zeros."""

        def fill(tensor: str, prefix: str, shape: tuple[int, ...], dtype: DType) -> Value:
            if self.kind == "normal" and not prefix:
                return normal(tensor, shape, dtype, self.std, self.seed)
            return zeros(tensor, shape, dtype)

        return fill


def parse_fill(text: str) -> Fill:
    """`zero`, `mean`, `copy:I` or `normal:STD,SEED`. Raises `UsageError`."""
    kind, _, argument = text.partition(":")
    words = [word.strip() for word in argument.split(",")] if argument else []
    try:
        if kind in ("zero", "mean") and not words:
            return Fill(kind=kind)
        if kind == "copy" and len(words) == 1:
            return Fill(kind=kind, copy=int(words[0]))
        if kind == "normal" and len(words) in (1, 2):
            std, seed = float(words[0]), int(words[1]) if len(words) == 2 else 0
            if math.isfinite(std) and std >= 0:
                return Fill(kind=kind, std=std, seed=seed)
    except ValueError:
        pass
    near = nearest(kind, [fill.partition(":")[0] for fill in FILLS])
    raise UsageError(f"{option('fill', text)}: expected {', '.join(FILLS)}.{near}")


def zeros(tensor: str, shape: tuple[int, ...], dtype: DType) -> Value:
    """A logical tensor of zeros."""
    size = math.prod(shape) * dtype.itemsize
    return _computed(f"zeros of {tensor} {list(shape)} {dtype}", tensor, shape, dtype, size, _zeros)


def normal(tensor: str, shape: tuple[int, ...], dtype: DType, std: float, seed: int) -> Value:
    """A logical tensor of normally distributed numbers, which follow from the seed, the tensor's
    name and the place in it."""
    key = (seed, zlib.crc32(tensor.encode()))

    def make(offset: int, length: int) -> bytes:
        import numpy as np

        from ckptforge.steps.counters import normals
        from ckptforge.surgery.means import rounded

        first, last = offset // dtype.itemsize, -(-(offset + length) // dtype.itemsize)
        numbers = normals(np.arange(first, last, dtype=np.int64), key) * std
        made = rounded(numbers, dtype)
        skip = offset - first * dtype.itemsize
        return made.view(np.uint8).tobytes()[skip : skip + length]

    size = math.prod(shape) * dtype.itemsize
    name = f"normal {std!r} {seed} of {tensor} {list(shape)} {dtype}"
    return _computed(name, tensor, shape, dtype, size, make)


def _zeros(offset: int, length: int) -> bytes:
    return bytes(length)


def _computed(
    name: str, tensor: str, shape: Sequence[int], dtype: DType, size: int, make: object
) -> Value:
    path = COMPUTED.add(name, size, make)  # type: ignore[arg-type]
    extents = (Extent(0, 0, size),) if size else ()
    return value_of(
        Stored(path=path, name=tensor, dtype=dtype, shape=tuple(shape), extents=extents)
    )
