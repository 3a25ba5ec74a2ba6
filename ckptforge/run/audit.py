"""What casts did to the numbers of each group of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ckptforge.dtypes import DType


@dataclass
class CastCount:
    """What casts did to `values` numbers: finite made infinite, nonzero made zero, or rounded
    otherwise; NaN counts as none of these. `undefined` are infinities that a scale of 0 made
    NaN. Of numbers that become codes with scales, `error` is the sum of the squares of what that
    changed, `square` that of the numbers, and `worst` the largest quotient of both in a block."""

    values: int = 0
    overflowed: int = 0
    underflowed: int = 0
    rounded: int = 0
    undefined: int = 0
    error: float = 0.0
    square: float = 0.0
    worst: float = 0.0

    @property
    def relative_error(self) -> float | None:
        """‖codes - numbers‖₂ / ‖numbers‖₂; None of a cast, and where all numbers are 0."""
        return math.sqrt(self.error / self.square) if self.square else None

    @property
    def worst_block(self) -> float:
        """The same of the block where it is largest."""
        return math.sqrt(self.worst)

    def add(self, other: CastCount) -> None:
        """Adds the counts of another part."""
        worst = max(self.worst, other.worst)
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)
        self.worst = worst


@dataclass
class Audit:
    """Cast counts by (tensor group, from dtype, to dtype). What several ranks hold alike counts
    once."""

    counts: dict[tuple[str, str, str], CastCount] = field(default_factory=dict)

    def add(self, group: str, source: DType, target: DType, count: CastCount) -> None:
        """Adds what a cast did to tensors of a group."""
        self.counts.setdefault((group, source.name, target.name), CastCount()).add(count)

    def merge(self, other: Audit) -> None:
        """Adds all of another audit."""
        for key, count in other.counts.items():
            self.counts.setdefault(key, CastCount()).add(count)

    @property
    def overflowed(self) -> int:
        """How many finite numbers became infinite."""
        return sum(count.overflowed for count in self.counts.values())
