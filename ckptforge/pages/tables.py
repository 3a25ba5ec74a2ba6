"""Tables, lists of facts, and lists that end where they get too long."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ckptforge.pages.markup import Child, Markup, breakable, joined, tag
from ckptforge.wording import counted

MOST = 500  # rows of a table, and elements of a list
_FEW = 4  # files that are named, though they are alike


def facts(rows: Iterable[tuple[str, object]]) -> Markup:
    """Names and what they are; what is None is left out."""
    return tag(
        "dl",
        [
            tag(
                "div",
                tag("dt", name),
                tag("dd", value if isinstance(value, Markup) else str(value)),
            )
            for name, value in rows
            if value is not None
        ],
    )


def table(
    titles: Sequence[str],
    rows: Sequence[Sequence[Child]],
    caption: str,
    numbers: Sequence[int] = (),
    keys: Sequence[str] = (),
    bad: Sequence[int] = (),
) -> Markup:
    """A table whose first column names its rows: columns in `numbers` flush right, rows in `bad`
    marked. `keys` are what a search compares with, for each row."""
    if not rows:
        return Markup()
    head = [
        tag("th", title, scope="col", class_=_number(i, numbers)) for i, title in enumerate(titles)
    ]
    lines = []
    for row, cells in enumerate(rows[:MOST]):
        first, *others = cells
        inner = [
            tag("td", cell, class_=_number(i, numbers), data_t=titles[i] or None)
            for i, cell in enumerate(others, 1)
        ]
        key = keys[row] if keys else None
        marked = "bad" if row in bad else None
        title = tag("th", breakable(first) if isinstance(first, str) else first, scope="row")
        lines.append(tag("tr", title, inner, data_key=key, class_=marked))
    made = tag("table", tag("caption", caption), tag("thead", tag("tr", head)), tag("tbody", lines))
    rest = _rest(len(rows), "row")
    scroll = tag("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)
    return joined(search(caption) if keys else None, scroll, rest)


def items(lines: Sequence[str]) -> Markup:
    """Sentences or names, one below the other."""
    if not lines:
        return Markup()
    return joined(
        tag("ul", [tag("li", breakable(line)) for line in lines[:MOST]]), _rest(len(lines), "line")
    )


def paths(files: Sequence[str]) -> Markup:
    """Files, those whose names differ in numbers alone in one line."""
    alike: dict[str, list[str]] = {}
    for file in files:
        alike.setdefault(re.sub(r"\d+", "#", file), []).append(file)
    lines = []
    for own in alike.values():
        if len(own) < _FEW:
            lines += own
        else:
            lines.append(f"{own[0]} … {own[-1]} ({counted(len(own), 'file')})")
    return items(lines)


def changes(titles: Sequence[str], rows: Mapping[str, Sequence[object]], caption: str) -> Markup:
    """What is something else on two sides."""
    cells = [[name, *(_said(value) for value in both)] for name, both in rows.items()]
    return table(titles, cells, caption)


def _said(value: object) -> str:
    return "none" if value is None else str(value)


def _number(column: int, numbers: Sequence[int]) -> str | None:
    return "n" if column in numbers else None


def search(caption: str) -> Markup:
    """A field that leaves the rows of a section, or of an element of the class `searched`, whose
    names it finds."""
    field = tag("input", type="search", class_="search", placeholder="name, or a part of it")
    return tag("label", f"Search: {caption} ", field, class_="noprint")


def _rest(count: int, noun: str) -> Markup | None:
    if count <= MOST:
        return None
    return tag("p", f"… and {counted(count - MOST, noun)} more; the JSON of the result has all.")
