"""A tensor of an opened model: nothing of it is read until it is indexed."""

from __future__ import annotations

import math
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.examine.window import Window, strided
from ckptforge.run.casts import numpy_dtype
from ckptforge.values import Value

Item = int | slice | EllipsisType
Index = Item | tuple[Item, ...]


class Tensor:
    """A tensor of a model. `tensor[index]` reads what the index needs of it, and gives an array of
    numpy; `dtype` is the array's (bfloat16 and the 8-bit floats are ml_dtypes')."""

    def __init__(self, name: str, value: Value, window: Window) -> None:
        self.name = name
        self._value, self._window = value, window

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return self._value.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """What its numbers are."""
        return numpy_dtype(self._value.dtype)

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes they take."""
        return self._value.nbytes

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a tensor without axes")
        return self.shape[0]

    def __getitem__(self, index: Index) -> NDArray[Any]:
        """Reads some of it: by numbers, slices (with steps of any sign) and `...`, as of an array
        of numpy. Raises `IndexError` outside of it, and `TypeError` for lists and masks: read more
        of it, and index that."""
        ranges, kept, turned = ranges_of(self.name, self.shape, index)
        found = self._window.read(self.name, strided(self._value, ranges, kept))
        back = tuple(slice(None, None, -1 if flip else 1) for flip in turned)
        return np.asarray(found[back]) if any(turned) else found

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> NDArray[Any]:
        if copy is False:
            raise ValueError(f"{self.name} lies in a file: an array of it is a copy")
        found = self[...]
        return found if dtype is None else found.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"<Tensor {self.name}: {self._value.dtype} {list(self.shape)}>"


def ranges_of(
    name: str, shape: tuple[int, ...], index: Index
) -> tuple[list[range], list[bool], list[bool]]:
    """(indices along each axis; whether it stays; of those that stay whether it is turned)."""
    items = list(index) if isinstance(index, tuple) else [index]
    dots = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1 or len(items) - len(dots) > len(shape):
        raise IndexError(f"{name} has {len(shape)} axes, too few for the index {index!r}")
    at = dots[0] if dots else len(items)
    rest: list[Any] = [slice(None)] * (len(shape) - len(items) + len(dots))
    items = [*items[:at], *rest, *items[at + len(dots) :]]
    ranges, kept, turned = [], [], []
    for axis, (item, length) in enumerate(zip(items, shape, strict=True)):
        if isinstance(item, slice):
            found = range(length)[item]
            turned.append(found.step < 0)
            ranges.append(found[::-1] if found.step < 0 else found)
            kept.append(True)
            continue
        if isinstance(item, bool) or not isinstance(item, (int, np.integer)):
            raise TypeError(
                f"{name} is indexed by numbers, slices and ..., not by {type(item).__name__}; read "
                "more of it, and index that"
            )
        number = int(item)
        if not -length <= number < length:
            raise IndexError(f"index {number} is outside axis {axis} of {name}, of {length}")
        number %= length
        ranges.append(range(number, number + 1))
        kept.append(False)
    return ranges, kept, turned
