"""Numbers that look random and follow from a key and a counter alone, so that any worker can make
any of them: the finaliser of splitmix64 (Steele et al., "Fast splittable pseudorandom number
generators", 2014) over the counter, mixed with the key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def bits(counters: NDArray[np.int64], key: Sequence[int]) -> NDArray[np.uint64]:
    """64 bits for each counter."""
    state = 0
    for part in key:
        state = _mixed(state + (part & _MASK) + _GOLDEN)
    with np.errstate(over="ignore"):
        z = counters.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(state)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
        found: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return found


def chances(counters: NDArray[np.int64], key: Sequence[int]) -> NDArray[np.float64]:
    """For each counter a number from 0 to below 1, all alike."""
    found: NDArray[Any] = (bits(counters, key) >> np.uint64(11)) * 2.0**-53
    return found


def normals(counters: NDArray[np.int64], key: Sequence[int]) -> NDArray[np.float64]:
    """For each counter a number of the normal distribution (Box and Muller, 1958)."""
    first, second = (chances(counters, (*key, part)) for part in (0, 1))
    found: NDArray[np.float64] = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)
    return found


def _mixed(number: int) -> int:
    z = number & _MASK
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)
