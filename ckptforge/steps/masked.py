"""Keeping some elements of a tensor, by chance, and making the others 0.

Whether an element is kept follows from a hash of its place in the value, so that it is the same
however a run cuts its work, and wherever the element is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ckptforge.dtypes import DType
from ckptforge.transfers import Transfer
from ckptforge.values import Read, Stored, Window, computing_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


_PIECE = 1 << 16  # elements whose places are computed at a time


class Masked(msgspec.Struct, frozen=True, kw_only=True):
    """Of a tensor's numbers about `density` are kept, chosen by `key` and the place in a value that
    `transfer` brings them to; the others become 0."""

    key: tuple[int, ...]
    density: float
    transfer: Transfer

    @property
    def inputs(self) -> tuple[Stored, ...]:
        """None."""
        return ()

    def gives(self, dtype: DType) -> DType:
        """float32, or float64 where the tensor is of that."""
        return computing_dtype((dtype,))

    def memory(self, stored: Stored) -> int:
        """Nothing but what is computed at a time."""
        return 0

    def identity(self) -> bytes:
        """Which elements are kept."""
        t = self.transfer
        strides = (t.shape, t.source, t.source_strides, t.target, t.target_strides)
        return repr(("masked", self.key, self.density, strides)).encode()

    def prepare(self, stored: Stored, read: Read) -> _Mask:
        """The mask of a tensor."""
        return _Mask(self, stored)


class _Mask:
    def __init__(self, step: Masked, stored: Stored) -> None:
        self._step = step
        self._columns = stored.shape[-1] if stored.shape else 1

    def apply(self, numbers: Array, windows: Sequence[Window]) -> int:
        """Makes the numbers that aren't kept 0."""
        import numpy as np

        from ckptforge.steps.counters import chances

        for window in windows:
            width = window.stop - window.start
            rows = max(1, _PIECE // width)
            columns = np.arange(window.start, window.stop, dtype=np.int64)
            for row in range(0, window.rows, rows):
                many = min(rows, window.rows - row)
                lines = np.arange(window.first + row, window.first + row + many, dtype=np.int64)
                places = self._places((lines[:, None] * self._columns + columns).reshape(-1))
                at = window.at + row * width
                kept = chances(places, self._step.key) < self._step.density
                numbers[at : at + many * width][~kept] = 0
        return 0

    def _places(self, flat: Array) -> Array:
        """Where elements of the stored tensor lie in the value."""
        import numpy as np

        t = self._step.transfer
        axes = sorted(
            zip(t.shape, t.source_strides, t.target_strides, strict=True), key=lambda axis: -axis[1]
        )
        if len(axes) == 1 and axes[0][1] == axes[0][2] == 1:
            return flat - t.source + t.target
        rest, places = flat - t.source, np.full(flat.shape, t.target, np.int64)
        for _, source, target in axes:
            index, rest = np.divmod(rest, source)
            places += index * target
        return places
