"""What the numbers of tensors are like: extremes, means, zeros and what isn't finite.

A tensor is read in runs of a fixed length, whatever the memory, and each run is summed in float64
around its own mean; the runs are added up without rounding (math.fsum), so that the figures are the
same with any number of workers. Histograms have a bin for each power of two and sign, which is the
same for all tensors, so that they are counted in the same pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ckptforge.dtypes import DType
from ckptforge.planning.assembly import Assembly
from ckptforge.planning.lower import in_memory
from ckptforge.run.budget import Budget
from ckptforge.run.casts import numpy_dtype
from ckptforge.run.pool import Progress, run_tasks
from ckptforge.run.run import cache_bytes
from ckptforge.run.tiles import Tile
from ckptforge.run.worker import Worker
from ckptforge.values import Value

_RUN = 1 << 17  # elements that are read at a time
_PIECE = 1 << 14  # elements that are summed at a time: their float64s stay in a core's cache


_CODES, _BIAS = 1 << 12, 1023  # sign and exponent of a float64


class Moments(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of some numbers: how many there are, are NaN, infinite and zero; of the finite ones
    the extremes, the mean, and the sum of squared distances from it (`spread`)."""

    count: int = 0
    nan: int = 0
    infinite: int = 0
    zeros: int = 0
    min: float = math.inf
    max: float = -math.inf
    mean: float = 0.0
    spread: float = 0.0

    @property
    def finite(self) -> int:
        """How many numbers are finite."""
        return self.count - self.nan - self.infinite

    @property
    def std(self) -> float:
        """The standard deviation of the finite numbers, of all of them (not of a sample)."""
        return math.sqrt(self.spread / self.finite) if self.finite else math.nan


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """How many numbers below and above zero have a magnitude of at least 2^`exponent` and less than
    twice that; those of exponent -1023 are less than 2^-1022."""

    exponent: int
    negative: int
    positive: int


def moments(
    values: Mapping[str, Value],
    kinds: Mapping[str, str],
    budget: Budget,
    progress: Progress | None = None,
) -> tuple[dict[str, Moments], dict[str, list[Bin]]]:
    """Name → figures of the values that are plain numbers, and kind → histogram by what `kinds`
    says of each name; reads each once. Raises the errors of reading."""
    assemblies = [
        in_memory(name, value) for name, value in values.items() if is_numeric(value.dtype)
    ]
    total = sum(one.place.nbytes for one in assemblies)
    found: dict[str, dict[int, Moments]] = {one.place.name: {} for one in assemblies}

    counts: dict[str, NDArray[np.int64]] = {}

    def finished(task: _Sum, made: tuple[Moments, NDArray[np.int64]]) -> None:
        name = task.assembly.place.name
        found[name][task.tile.c0], own = made
        counts[kinds[name]] = own + counts.get(kinds[name], 0)

    budget = budget.caching(cache_bytes(values.values()))
    queue = (_Sum(one, tile) for one in assemblies for tile in _runs(one))
    tell = (lambda done: progress(done, total)) if progress else (lambda done: None)
    run_tasks(queue, budget, finished, tell)
    summed = {name: together([runs[at] for at in sorted(runs)]) for name, runs in found.items()}
    nothing = np.zeros(_CODES, np.int64)
    return summed, {
        kind: _bins(counts.get(kind, nothing)) for kind in dict.fromkeys(kinds[n] for n in found)
    }


def is_numeric(dtype: DType) -> bool:
    """Whether a dtype is of real numbers, which float64 holds or rounds to."""
    return dtype.floating or np.dtype(numpy_dtype(dtype)).kind in "iub"


def together(parts: Sequence[Moments]) -> Moments:
    """The figures of the numbers of several parts."""
    finite = sum(part.finite for part in parts)
    mean = math.fsum(part.finite * part.mean for part in parts) / finite if finite else math.nan
    apart = math.fsum(part.finite * (part.mean - mean) ** 2 for part in parts if part.finite)
    return Moments(
        count=sum(part.count for part in parts),
        nan=sum(part.nan for part in parts),
        infinite=sum(part.infinite for part in parts),
        zeros=sum(part.zeros for part in parts),
        min=min((part.min for part in parts), default=math.inf),
        max=max((part.max for part in parts), default=-math.inf),
        mean=mean,
        spread=math.fsum(part.spread for part in parts) + apart,
    )


class _Sum(msgspec.Struct, frozen=True):
    """The figures of a run of a tensor, and how often each sign and exponent is in it."""

    assembly: Assembly
    tile: Tile

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.tile.elements * self.assembly.place.dtype.itemsize

    def do(self, worker: Worker) -> tuple[Moments, NDArray[np.int64]]:
        """Reads it and sums it up."""
        raw = worker.assembler.assemble(self.assembly, self.tile)
        numbers = raw.view(numpy_dtype(self.assembly.place.dtype))
        starts = range(0, numbers.size, _PIECE)
        counts = np.zeros(_CODES, np.int64)
        with np.errstate(all="ignore"):  # NaN, and squares of float64s that are infinite
            return together([_piece(numbers[at : at + _PIECE], counts) for at in starts]), counts


def _runs(assembly: Assembly) -> Iterator[Tile]:
    width = assembly.place.elements
    return (Tile(width, 0, 1, at, min(at + _RUN, width)) for at in range(0, width, _RUN))


def _bins(counts: NDArray[np.int64]) -> list[Bin]:
    """The bins that hold a number, in ascending order."""
    positive, negative = counts.reshape(2, -1)[:, :-1].tolist()  # the last is of what isn't finite
    return [
        Bin(exponent=code - _BIAS, negative=below, positive=above)
        for code, (below, above) in enumerate(zip(negative, positive, strict=True))
        if below or above
    ]


def _piece(raw: NDArray[Any], counts: NDArray[np.int64]) -> Moments:
    """The figures of a piece; adds to `counts` how many have each sign and exponent but zero."""
    numbers = raw.astype(np.float64)
    counts += np.bincount((numbers.view(np.uint64) >> 52).view(np.int64), minlength=_CODES)
    nan = int(np.count_nonzero(numbers != numbers))
    infinite = int(np.count_nonzero(np.isinf(numbers)))
    finite = numbers[np.isfinite(numbers)] if nan or infinite else numbers
    if not finite.size:
        return Moments(count=numbers.size, nan=nan, infinite=infinite)
    mean = float(finite.mean())
    apart = finite - mean
    if zeros := int(np.count_nonzero(finite == 0)):
        minus = int(np.count_nonzero(np.signbit(finite[finite == 0])))
        counts[[0, _CODES // 2]] -= [zeros - minus, minus]
    return Moments(
        count=numbers.size,
        nan=nan,
        infinite=infinite,
        zeros=zeros,
        min=float(finite.min()),
        max=float(finite.max()),
        mean=mean,
        spread=float(apart @ apart),
    )
