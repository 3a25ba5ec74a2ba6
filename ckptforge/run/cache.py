"""What a worker keeps beside its buffers, within bounds."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Cache:
    """Things made when they are first wanted, by keys; the oldest go where all together would take
    more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[Hashable, tuple[int, Any]] = {}

    def get(self, key: Hashable, nbytes: int, make: Callable[[], T]) -> T:
        """What was made for a key, or is made now and takes `nbytes`."""
        if key not in self._kept:
            while (
                self._kept and sum(size for size, _ in self._kept.values()) + nbytes > self._limit
            ):
                del self._kept[next(iter(self._kept))]
            self._kept[key] = nbytes, make()
        found: T = self._kept[key][1]
        return found
