"""Maps of who holds what: a table for each group of alike stages, a strip for each kind of tensor,
a column for the ranks that hold the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckptforge.boxes import box_shape
from ckptforge.covering import box_text, volume
from ckptforge.pages.kinds import bytes_of, key_of
from ckptforge.pages.markup import Markup, tag
from ckptforge.pages.shards import Panel, Row, panels
from ckptforge.pages.strips import Strip, strip_table
from ckptforge.pages.tables import search
from ckptforge.wording import counted, runs_of, size

_COLOURS = 24  # of the style, in the order of their hues


def shard_map(parts: Sequence[Mapping[str, Any]], name: str) -> Markup:
    """The map of what `parts` of a result lists; nothing where nothing is cut into ranks. `name` is
    its own in a page."""
    found = panels(parts)
    if not found:
        return Markup()
    ranks = sorted({rank for panel in found for rank in panel.ranks})
    held = [
        (sum(row.bytes_in(column) for row in panel.rows), panel)
        for panel in found
        for column in range(len(panel.columns))
    ]
    least, most = min(n for n, _ in held), max(n for n, _ in held)
    each = " to ".join(dict.fromkeys((size(least), size(most)))) + " each"
    colours = "A colour is a part of a tensor; grey is all of it."
    field = tag("input", type="number", class_="rank", min=ranks[0], max=ranks[-1])
    return tag(
        "div",
        tag("p", f"{counted(len(ranks), 'rank')}, {each}. {colours}"),
        tag("label", "Show rank ", field, class_="noprint", data_maps=name),
        search("Tensors by rank"),
        [_map(panel, f"{name}-{number}") for number, panel in enumerate(found)],
        class_="searched",
    )


def _map(panel: Panel, name: str) -> Markup:
    stages = counted(len(panel.starts), "stage")
    stages = f"{stages} alike, " if len(panel.starts) > 1 else ""
    groups = counted(len(panel.columns), "group")
    total = len(panel.ranks)
    per = sum(row.bytes_in(0) for row in panel.rows)
    caption = f"Ranks {runs_of(panel.ranks)}: {stages}{counted(total, 'rank')}"
    if len(panel.columns) * len(panel.starts) < total:
        caption += f", of which {groups} hold the same"
    columns = [
        f"rank{'s' if len(own) * len(panel.starts) > 1 else ''} {_ranks(panel, own)}"
        for own in panel.columns
    ]
    return strip_table(
        ("tensor", "whole", "a rank's part", _across(panel)),
        [_strip(row, " in each stage" if len(panel.starts) > 1 else "") for row in panel.rows],
        columns,
        f"{caption}; {size(per)} each",
        name,
        {"starts": panel.starts, "columns": [list(own) for own in panel.columns]},
    )


def _ranks(panel: Panel, own: Sequence[int]) -> str:
    return runs_of(start + rank for start in panel.starts for rank in own)


def _across(panel: Panel) -> str:
    """What a strip has from left to right."""
    first, last = (_ranks(panel, panel.columns[i]) for i in (0, -1))
    return f"rank {first} → {last}" if len(panel.starts) == 1 else "the ranks of a stage, in order"


def _strip(row: Row, where: str) -> Strip:
    alike = f" ×{row.count}{where}" if row.count > 1 else ""
    shapes = [list(box_shape(box)) for box in row.boxes]
    sizes = [size(bytes_of(row.dtype, shape)) for shape in shapes]
    each = " each" if row.count > 1 else ""
    tips = [
        f"{row.name} {box_text(box)}, shape {shape}, {row.dtype}, {bytes_}{each}"
        for box, shape, bytes_ in zip(row.boxes, shapes, sizes, strict=True)
    ]
    whole = [volume(box) == volume(tuple((0, n) for n in row.shape)) for box in row.boxes]
    colours = ["w" if all_ else f"c{i * _COLOURS // len(whole)}" for i, all_ in enumerate(whole)]
    parts = counted(len(row.boxes), "part")
    return Strip(
        cells=(row.name + alike, f"{list(row.shape)} {row.dtype}", f"{shapes[0]}, {sizes[0]}"),
        tips=tips,
        colours=colours,
        of=row.of,
        said=f"{row.name}: the same on all" if whole[0] else f"{row.name}: {parts}",
        key=key_of(row.tensor),
    )
