"""What an axis is made of after an edit: for each new index the old ones that it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from ckptforge.dtypes import DType
from ckptforge.values import Value


class Pick(msgspec.Struct, frozen=True):
    """An old index, and how much of it."""

    index: int
    weight: float = 1.0


# (logical tensor, its name's prefix, shape of all that is filled, dtype) → what it is filled with
Filling = Callable[[str, str, tuple[int, ...], DType], Value]
Entry = tuple[Pick, ...] | None  # old indexes that are added up; None: filled


class Along(msgspec.Struct, frozen=True, kw_only=True):
    """An axis after an edit: `entries` of each of its new indexes, or by (axis of the layers,
    layer) where each layer has its own; all are of one length. `filling` gives what fills the
    entries that come from nowhere, `numbers` are those in names, where the axis counts only some of
    another."""

    entries: tuple[Entry, ...] | Mapping[tuple[str, int], tuple[Entry, ...]]
    filling: Filling | None = None
    numbers: tuple[int, ...] | None = None

    @property
    def length(self) -> int:
        """How long the axis is then."""
        if isinstance(self.entries, Mapping):
            return len(next(iter(self.entries.values())))
        return len(self.entries)

    @property
    def weighted(self) -> bool:
        """Whether some new index is a mean of old ones."""
        every = self.entries.values() if isinstance(self.entries, Mapping) else (self.entries,)
        return any(entry is not None and len(entry) > 1 for own in every for entry in own)

    def of(self, layer: tuple[str, int] | None) -> tuple[Entry, ...]:
        """The entries of a layer. Raises `KeyError` where each has its own and it has none."""
        if not isinstance(self.entries, Mapping):
            return self.entries
        if layer is None:
            raise KeyError("no layer")
        return self.entries[layer]


def taking(indexes: Sequence[int]) -> tuple[Entry, ...]:
    """The entries of an axis that is made of old indexes, in this order."""
    return tuple((Pick(index),) for index in indexes)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """New indexes from `start` on that come from old ones in even steps, or are filled, counted
    from the first that is; `weight` of each."""

    start: int
    length: int
    source: int
    step: int = 1
    weight: float = 1.0
    filled: bool = False


def runs_of(entries: Sequence[Entry], slot: int) -> Iterator[Run]:
    """The runs of the picks of number `slot`; filled entries are of slot 0."""
    held: list[tuple[int, Pick | None, int]] = []  # (new index, pick, number among the filled)
    filled = 0
    for i, entry in enumerate(entries):
        if entry is None:
            if slot == 0:
                held.append((i, None, filled))
            filled += 1
        elif slot < len(entry):
            held.append((i, entry[slot], 0))
    at = 0
    while at < len(held):
        end, step = _end_of_run(held, at)
        i, pick, number = held[at]
        yield Run(
            start=i,
            length=end - at,
            source=number if pick is None else pick.index,
            step=step,
            weight=1.0 if pick is None else pick.weight,
            filled=pick is None,
        )
        at = end


def _end_of_run(held: Sequence[tuple[int, Pick | None, int]], at: int) -> tuple[int, int]:
    """(where the run that begins at a place ends, its step)."""
    first, pick, _ = held[at]
    step, end = 1, at + 1
    while end < len(held) and held[end][0] == first + end - at:
        other = held[end][1]
        if pick is None or other is None:
            if pick is not other:
                break
        elif other.weight != pick.weight:
            break
        elif end == at + 1:
            step = other.index - pick.index
            if step < 1:
                return end, 1
        elif other.index != pick.index + step * (end - at):
            break
        end += 1
    if end == at + 1 or (end == at + 2 and step != 1):
        return at + 1, 1  # two in a step are as well two runs
    return end, step
