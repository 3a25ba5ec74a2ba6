"""In which order the tasks of a plan read what is far, so that nothing comes twice."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path

from ckptforge.planning.assembly import Assembly
from ckptforge.run.budget import Budget
from ckptforge.run.moves import Move
from ckptforge.run.tasks import Fill, tasks_of
from ckptforge.run.together import together

_Spot = tuple[int, int]  # a source, by its number, and a byte of its file


def as_they_lie(
    made: Iterable[Assembly], budget: Budget, sources: dict[Path, int]
) -> Iterator[Move | Fill]:
    """The tasks that make assemblies, those first that read what lies first in the first source."""
    found = [
        (_read_first(task, spots, sources), task)
        for group in together(made)
        for spots in (_spots(group[0], sources),)
        for task in tasks_of(group, budget)
    ]
    found.sort(key=lambda pair: pair[0])
    yield from (task for _, task in found)


def _spots(assembly: Assembly, sources: dict[Path, int]) -> list[tuple[int, _Spot]]:
    """(first element, where its source lies) of each fragment of the first term, in order."""
    fragments = assembly.terms[0].fragments if assembly.terms else ()
    return sorted(
        (one.transfer.target, (sources[stored.path], stored.extents[0].offset + start))
        for one in fragments
        for stored in (one.stored,)
        for start, _ in (stored.bytes_of(one.transfer.source, 1),)
        if stored.path in sources and stored.extents
    )


def _read_first(
    task: Move | Fill, spots: list[tuple[int, _Spot]], sources: dict[Path, int]
) -> _Spot:
    if isinstance(task, Move):
        return sources.get(task.source.path, -1), task.source_at
    first = task.tile.r0 * task.tile.width + task.tile.c0
    i = bisect_right(spots, first, key=lambda spot: spot[0])
    return spots[max(i - 1, 0)][1] if spots else (-1, 0)
