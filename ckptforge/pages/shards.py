"""Which rank holds what, with what is alike brought together: ranks that hold the same, and stages
that hold alike tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.pages.kinds import bytes_of, key_of, pattern
from ckptforge.pages.strips import NOTHING

Box = tuple[tuple[int, int], ...]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of tensor, the distinct boxes of it that ranks hold, and the number of its box for
    each column (`NOTHING` where it holds none)."""

    name: str
    count: int
    dtype: str
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    of: tuple[int, ...]

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
        alike = tuple(replace(row, name=key_of(row.name)) for row in panel.rows)
        key = panel.columns, alike
        if (other := found.get(key)) is not None:
            panel = replace(panel, starts=(*other.starts, *panel.starts), rows=alike)
        found[key] = panel
    return list(found.values())


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
                name=pattern(part),
                count=part["count"],
                dtype=part["dtype"],
                shape=tuple(part["shape"]),
                boxes=tuple(boxes),
                of=tuple(where[column[number]] for column in alike),
            )
        )
    return Panel(starts=(start,), columns=tuple(map(tuple, alike.values())), rows=tuple(rows))
