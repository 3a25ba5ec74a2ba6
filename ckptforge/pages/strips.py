"""Tables whose rows end in a strip of coloured cells: maps of ranks, layers and experts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import msgspec

from ckptforge.pages.markup import Child, Markup, breakable, data, joined, tag

NOTHING = -1


class Strip(msgspec.Struct, frozen=True, kw_only=True):
    """A row: its cells of text, and for each column the number of one of its `tips` (`NOTHING` for
    none), which say what is there; `colours` are a class of the style for each tip. `key` is what
    a search compares with. `heights` are those of the columns, in parts of the strip's, where they
    are bars."""

    cells: Sequence[Child]
    tips: Sequence[str]
    colours: Sequence[str]
    of: Sequence[int]
    said: str
    key: str | None = None
    heights: Sequence[float] | None = None


def strip_table(
    titles: Sequence[str],
    strips: Sequence[Strip],
    columns: Sequence[str],
    caption: str,
    name: str,
    ranks: dict[str, Any] | None = None,
) -> Markup:
    """A table of strips; `name` is its own in a page. `columns` are their names for whoever points
    at a cell, `ranks` says which of them a rank is in."""
    head = [tag("th", title, scope="col") for title in titles]
    rows = []
    for number, strip in enumerate(strips):
        first, *others = strip.cells
        picture = tag(
            "svg",
            list(_cells(strip)),
            viewBox=f"0 0 {len(columns)} 1",
            preserveAspectRatio="none",
            role="img",
            class_="bars" if strip.heights is not None else None,
            aria_label=f"{strip.said}. The arrow keys go through its {len(columns)} columns.",
            tabindex="0",
            data_row=str(number),
        )
        cells = [
            tag("td", cell, data_t=title) for title, cell in zip(titles[1:], others, strict=False)
        ]
        title = tag("th", breakable(first) if isinstance(first, str) else first, scope="row")
        line = joined(title, cells, tag("td", picture, class_="strip", data_t=titles[-1]))
        rows.append(tag("tr", line, data_key=strip.key))
    body = joined(tag("thead", tag("tr", head)), tag("tbody", rows))
    content = {
        "columns": list(columns),
        "rows": [_tips(one) for one in strips],
        "ranks": ranks,
    }
    made = tag("table", tag("caption", caption), body, class_="strips", data_strips=name)
    scroll = tag(
        "div", made, class_="scroll whole", tabindex="0", role="region", aria_label=caption
    )
    return joined(scroll, data(name, content))


def _tips(strip: Strip) -> dict[str, Any]:
    """What hovering over a strip says; how all begin and end stands there once."""
    before = _beginning(strip.tips)
    left = [one[len(before) :] for one in strip.tips]
    after = _beginning([one[::-1] for one in left])[::-1]
    middle = [one[: len(one) - len(after)] for one in left]
    return {"before": before, "tips": middle, "after": after, "of": list(strip.of)}


def _beginning(texts: Sequence[str]) -> str:
    """How all begin: as the first and the last of them in alphabetical order do."""
    low, high = min(texts, default=""), max(texts, default="")
    apart = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return low[: next(apart, len(low))]


def _cells(strip: Strip) -> Iterable[Markup]:
    """A rectangle for each run of columns of one colour."""
    if strip.heights is not None:
        yield from _bars(strip, strip.heights)
        return
    at = 0
    colours = [None if number == NOTHING else strip.colours[number] for number in strip.of]
    for colour, run in groupby(colours):
        width = len(list(run))
        if colour is not None:
            yield tag("rect", x=at or None, width=width, height=1, class_=colour)
        at += width


def _bars(strip: Strip, heights: Sequence[float]) -> Iterable[Markup]:
    """A bar for each column that holds something."""
    for at, (number, height) in enumerate(zip(strip.of, heights, strict=True)):
        if number != NOTHING:
            long = round(height, 3)
            look = strip.colours[number]
            yield tag("rect", x=at, y=round(1 - long, 3), width=1, height=long, class_=look)
