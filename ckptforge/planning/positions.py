"""Where what values are made of lies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ckptforge.values import Value

Position = tuple[int, int]  # the number of a source, and a byte of it


class Positions:
    """Where the first fragment of values begins, with sources numbered as they are met."""

    def __init__(self) -> None:
        self._sources: dict[Path, int] = {}

    def of(self, values: Mapping[str, Value]) -> dict[str, Position]:
        """The position of each; of one that is read from nowhere the first."""
        return {name: self._position(value) for name, value in values.items()}

    def _position(self, value: Value) -> Position:
        fragment = next(value.fragments, None)
        if fragment is None or not fragment.stored.extents:
            return -1, 0
        stored = fragment.stored
        number = self._sources.setdefault(stored.path, len(self._sources))
        start, _ = stored.bytes_of(fragment.transfer.source, 1)
        return number, stored.extents[0].offset + start
