"""Tensors as torch's files describe them: strided views of storages."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from ckptforge.dtypes import DType


class Storage(msgspec.Struct, frozen=True):
    """The numbers of one or more tensors: the member of the archive that holds them. `dtype` is
    None where each tensor says its own; `length` counts numbers, or bytes then."""

    key: str
    dtype: DType | None
    length: int


class View(msgspec.Struct, frozen=True):
    """A tensor: `offset` and `strides` count numbers of the storage."""

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def last(self) -> int:
        """The last number of the storage that it has, of a view that isn't empty."""
        steps = ((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return self.offset + sum(steps)

    @property
    def copies(self) -> int:
        """How often each of its numbers is repeated, by axes of stride 0."""
        pairs = zip(self.shape, self.strides, strict=True)
        return math.prod(n for n, stride in pairs if n > 1 and stride == 0)


class Unreadable(msgspec.Struct, frozen=True):
    """A tensor that isn't a view of numbers, in words."""

    what: str


def is_count(value: Any) -> bool:
    """Whether it is a number from 0 that a length can be."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
