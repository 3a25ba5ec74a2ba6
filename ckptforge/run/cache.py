"""What a worker keeps beside its buffers, within bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Held:
    """Things made when they are first wanted, by the identity of what they are of (which must
    outlive this); the oldest go where all together would take more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[int, tuple[int, Any]] = {}

    def get(self, of: object, nbytes: int, make: Callable[[], T]) -> T:
        if id(of) not in self._kept:
            while (
                self._kept and sum(held for held, _ in self._kept.values()) + nbytes > self._limit
            ):
                del self._kept[next(iter(self._kept))]
            self._kept[id(of)] = nbytes, make()
        found: T = self._kept[id(of)][1]
        return found
