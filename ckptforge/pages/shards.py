"""Which rank holds what, with what is alike brought together: ranks that hold the same, and stages
that hold alike tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.pages.kinds import bytes_of, key_of, name_of, together
from ckptforge.pages.strips import NOTHING

Box = tuple[tuple[int, int], ...]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of tensor: its first, the numbers in the names of all, the distinct boxes that ranks
    hold, and the number of its box for each column (`NOTHING` where it holds none)."""

    tensor: str
    numbers: tuple[tuple[str, ...], ...]
    count: int
    dtype: str
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    of: tuple[int, ...]

    @property
    def name(self) -> str:
        """How its tensors are called."""
        return name_of(self.tensor, self.numbers)

    def bytes_in(self, column: int) -> int:
        """What a rank of a column holds of it."""
        number = self.of[column]
        if number == NOTHING:
            return 0
        return self.count * bytes_of(self.dtype, [hi - lo for lo, hi in self.boxes[number]])


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """Stages that hold alike tensors in the same way: the first rank of each (`starts`), and for
    each column the ranks that hold the same, counted from there."""

    starts: tuple[int, ...]
    columns: tuple[tuple[int, ...], ...]
    rows: tuple[Row, ...]

    @property
    def ranks(self) -> list[int]:
        """The ranks of all its stages."""
        own = [rank for column in self.columns for rank in column]
        return sorted(start + rank for start in self.starts for rank in own)


def panels(parts: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The panels of what `parts` of a result lists, in the order of their ranks."""
    held: dict[int, dict[int, Box]] = {}
    for line, part in enumerate(parts):
        for rank, box in part["boxes"].items():
            held.setdefault(int(rank), {})[line] = tuple((lo, hi) for lo, hi in box)
    stages: dict[tuple[int, ...], list[int]] = {}
    for rank in sorted(held):
        stages.setdefault(tuple(held[rank]), []).append(rank)
    found: dict[tuple[Any, ...], Panel] = {}
    for lines, ranks in stages.items():
        panel = _panel([parts[line] for line in lines], {r: list(held[r].values()) for r in ranks})
        alike = tuple(replace(row, tensor=key_of(row.tensor), numbers=()) for row in panel.rows)
        key = panel.columns, alike
        if (other := found.get(key)) is not None:
            rows = tuple(map(_with_numbers, other.rows, panel.rows))
            panel = replace(panel, starts=(*other.starts, *panel.starts), rows=rows)
        found[key] = panel
    return list(found.values())


def _with_numbers(one: Row, other: Row) -> Row:
    """A row for the tensors of alike rows of two stages."""
    numbers = together([one.numbers, other.numbers])
    return replace(one, numbers=tuple(map(tuple, numbers)))


def _panel(parts: Sequence[Mapping[str, Any]], held: Mapping[int, Sequence[Box]]) -> Panel:
    """The panel of one stage; `held` has for each rank a box for each part."""
    start = min(held)
    alike: dict[tuple[Box, ...], list[int]] = {}
    for rank, boxes in held.items():
        alike.setdefault(tuple(boxes), []).append(rank - start)
    rows = []
    for number, part in enumerate(parts):
        boxes = sorted({column[number] for column in alike})
        where = {box: i for i, box in enumerate(boxes)}
        rows.append(
            Row(
                tensor=part["tensor"],
                numbers=tuple(map(tuple, part["numbers"])),
                count=part["count"],
                dtype=part["dtype"],
                shape=tuple(part["shape"]),
                boxes=tuple(boxes),
                of=tuple(where[column[number]] for column in alike),
            )
        )
    return Panel(starts=(start,), columns=tuple(map(tuple, alike.values())), rows=tuple(rows))
