"""Scales of groups whose members lie anywhere: another tensor says which group an element is of.

Source: GPTQ's `g_idx`, by which AutoGPTQ and GPTQModel choose scales and zero points, and
compressed-tensors' `weight_g_idx`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ckptforge.dtypes import DType
from ckptforge.errors import FormatError, printable
from ckptforge.steps.grid import Grid
from ckptforge.steps.scaled import Scaled
from ckptforge.values import Prepared, Read, Stored, Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_PIECE = 1 << 14  # elements that are scaled at a time


class Grouped(msgspec.Struct, frozen=True, kw_only=True):
    """(number - offset - shift) · scale of a tensor of three axes, [words, columns, numbers of a
    word], with scales [groups, columns], or of two, [rows, numbers], with scales [rows, groups].
    `groups` has the group of each number of all words, or of a row. `scaled` says the same of
    groups that follow each other, as most do."""

    scaled: Scaled
    groups: Stored

    @property
    def inputs(self) -> tuple[Stored, ...]:
        """Scales, offsets and groups."""
        return (*self.scaled.inputs, self.groups)

    def gives(self, dtype: DType) -> DType:
        """As the scales give it."""
        return self.scaled.gives(dtype)

    def memory(self, stored: Stored) -> int:
        """That of the scales, and of the groups as indices."""
        indices = 3 * 8 * self.groups.elements + self.groups.nbytes
        return self.scaled.memory(stored) + indices

    def identity(self) -> bytes:
        """Its scales, and which tensor has the groups."""
        return b"grouped" + self.scaled.identity() + self.groups.identity()

    def prepare(self, stored: Stored, read: Read) -> Prepared:
        """The scales in memory. Raises `FormatError` for groups that there aren't, and for scales
        that aren't finite."""
        import numpy as np

        prepared = self.scaled.prepare(stored, read)
        groups = read(self.groups, None).astype(np.int64)
        by_row = len(stored.shape) == 2
        count = self.scaled.scale.stored.shape[1 if by_row else 0]
        size = self.scaled.block[1] if by_row else self.scaled.block[0] * stored.shape[-1]
        if (groups == np.arange(groups.size) // size).all():
            return prepared
        if groups.min() < 0 or groups.max() >= count:
            raise FormatError(
                f"{self.groups.path}: {printable(self.groups.name)} names groups from "
                f"{groups.min()} to {groups.max()}, but there are {count}; the file is damaged."
            )
        dtype = self.gives(stored.dtype)
        del prepared

        def by_group(grid: Grid) -> Array:
            numbers = grid.numbers(read, dtype)
            return numbers.reshape(-1, count).T if by_row else numbers

        offset = self.scaled.offset
        return _Gathered(
            columns=stored.shape[-2],
            each=stored.shape[-1],
            groups=groups,
            scales=by_group(self.scaled.scale),
            offsets=None if offset is None else by_group(offset),
            shift=self.scaled.shift,
        )


class _Gathered(msgspec.Struct, frozen=True, kw_only=True):
    """Scales in memory, with the group of each element."""

    columns: int
    each: int
    groups: Any
    scales: Any
    offsets: Any
    shift: float

    def apply(self, numbers: Array, windows: Sequence[Window]) -> int:
        """Makes of numbers what they stand for."""
        import numpy as np

        for at, row, count, start, stop in windows:
            window = numbers[at : at + count * (stop - start)].reshape(count, stop - start)
            step = max(1, _PIECE // (stop - start))
            for first in range(0, count, step):
                piece = window[first : first + step]
                rows = np.arange(row + first, row + first + len(piece))
                words, columns = np.divmod(rows, self.columns)
                members = words[:, None] * self.each + np.arange(start, stop)
                place = self.groups[members], columns[:, None]
                if self.offsets is not None:
                    piece -= self.offsets[place]
                piece -= self.shift
                piece *= self.scales[place]
        return 0
