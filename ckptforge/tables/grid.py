"""Where boxes lie in tensors. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ckptforge.boxes import dot


class Grid(msgspec.Struct, frozen=True):
    """Where a box lies in a tensor; offset and strides in elements."""

    offset: int
    strides: tuple[int, ...]

    def at(self, start: Sequence[int]) -> int:
        """The flat element of the box's element `start`."""
        return self.offset + dot(start, self.strides)
