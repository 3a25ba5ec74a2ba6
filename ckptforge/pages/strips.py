"""Tables whose rows end in a strip of coloured cells: maps of ranks, layers and experts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import msgspec

from ckptforge.pages.markup import Child, Markup, data, joined, tag

NOTHING = -1


class Strip(msgspec.Struct, frozen=True, kw_only=True):
    """A row: its cells of text, and for each column the number of one of its `tips` (`NOTHING` for
    none), which say what is there; `colours` are a class of the style for each tip. `key` is what
    a search compares with."""

    cells: Sequence[Child]
    tips: Sequence[str]
    colours: Sequence[str]
    of: Sequence[int]
    said: str
    key: str | None = None


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
            aria_label=f"{strip.said}. The arrow keys go through its {len(columns)} columns.",
            tabindex="0",
            data_row=str(number),
        )
        cells = [tag("td", cell) for cell in others]
        line = joined(tag("th", first, scope="row"), cells, tag("td", picture, class_="strip"))
        rows.append(tag("tr", line, data_key=strip.key))
    body = joined(tag("thead", tag("tr", head)), tag("tbody", rows))
    content = {
        "columns": list(columns),
        "rows": [{"tips": list(one.tips), "of": list(one.of)} for one in strips],
        "ranks": ranks,
    }
    made = tag("table", tag("caption", caption), body, class_="strips", data_strips=name)
    scroll = tag("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)
    return joined(scroll, data(name, content))


def _cells(strip: Strip) -> Iterable[Markup]:
    """A rectangle for each run of columns that hold the same."""
    at = 0
    for number, run in groupby(strip.of):
        width = len(list(run))
        if number != NOTHING:
            colour = strip.colours[number]
            yield tag("rect", x=at or None, width=width, height=1, class_=colour)
        at += width
