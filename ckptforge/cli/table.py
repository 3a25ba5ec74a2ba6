"""Tables for a terminal: as wide as it is, by one rule, and whole where nobody watches.

A table that is wider than the terminal is brought into its width in this order:

1. text in the last column wraps within its column; 2. a first cell that is too long for its column
stands on a line of its own, with the rest of its row beneath; 3. each row becomes a block: its
first cell, and beneath it `title: value`, as many on a line as fit.

What is longer than a whole line even so is shortened in its middle, with "…". In a pipe or a file a
table is whole, one line for each row; a COLUMNS in the environment counts as the width there too.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

from ckptforge.errors import printable

_GAP = 2
_INDENT = 4
_NARROW = 12  # what a wrapped last column, and a first one, must have left

Row = Sequence[str]


def width_of_output() -> int | None:
    """Columns of the terminal, or those that COLUMNS names; None for a pipe or a file."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    except ValueError:  # closed
        return None


def table(rows: Sequence[Row], right: Sequence[int] = (), width: int | None = None) -> str:
    """Columns as wide as their longest cell, titles first; those in `right` flush right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    limit = width_of_output() if width is None else width
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if limit is None or _sum(widths) <= limit:
        return "\n".join(_line(row, widths, right) for row in rows)
    if len(widths) - 1 not in right and _sum(widths[:-1]) + _GAP + _NARROW <= limit:
        room = limit - _sum(widths[:-1]) - _GAP
        if all(len(word) <= room for row in rows for word in row[-1].split()):
            return "\n".join(
                line for row in rows for line in _wrapped(row, [*widths[:-1], room], right)
            )
    if _INDENT + _GAP + _sum(widths[1:]) <= limit:
        first = limit - _GAP - _sum(widths[1:])
        return "\n".join(
            line for row in rows for line in _hung(row, [first, *widths[1:]], right, limit)
        )
    return "\n".join(line for row in rows[1:] for line in _block(rows[0], row, limit))


def facts(rows: Sequence[tuple[str, str]], width: int | None = None) -> str:
    """Names and what they are, one below the other; what is too long wraps, indented."""
    rows = [(name, printable(value)) for name, value in rows]
    limit = width_of_output() if width is None else width
    start = max(len(name) for name, _ in rows) + _GAP
    lines = []
    for name, value in rows:
        if limit is None or start + _NARROW > limit:
            lines.append(f"{name:{start}}{value}".rstrip())
            continue
        first, *more = _lines_of_words(value.split(" "), limit - start)
        lines += [f"{name:{start}}{first}".rstrip(), *(" " * start + line for line in more)]
    return "\n".join(lines)


def shortened(text: str, width: int) -> str:
    """`text` in at most `width` columns, cut in its middle, where names are most alike."""
    if len(text) <= width or width < 3:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def _sum(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _line(row: Row, widths: Sequence[int], right: Sequence[int]) -> str:
    cells = (
        cell.rjust(width) if column in right else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return (" " * _GAP).join(cells).rstrip()


def _wrapped(row: Row, widths: Sequence[int], right: Sequence[int]) -> list[str]:
    """A row whose last cell wraps."""
    first, *more = _lines_of_words(row[-1].split(" "), widths[-1])
    start = " " * (_sum(widths[:-1]) + _GAP)
    return [_line([*row[:-1], first], widths, right), *(start + line for line in more)]


def _hung(row: Row, widths: Sequence[int], right: Sequence[int], limit: int) -> list[str]:
    """A row whose first cell has a line of its own where it is too long."""
    if len(row[0]) <= widths[0]:
        return [_line(row, widths, right)]
    return [shortened(row[0], limit), _line(["", *row[1:]], widths, right)]


def _block(titles: Row, row: Row, limit: int) -> list[str]:
    """A row as a block of lines."""
    room = limit - _INDENT
    pairs = [
        f"{title}: {cell}" if title else cell
        for title, cell in zip(titles[1:], row[1:], strict=True)
        if cell
    ]
    pairs = [f"{pair};" for pair in pairs[:-1]] + pairs[-1:]
    lines = _lines_of_words(
        [word for pair in pairs for word in ([pair] if len(pair) <= room else pair.split(" "))],
        room,
    )
    first = [shortened(row[0], limit)] if row[0] else []  # none: more of the row above
    return [*first, *(" " * _INDENT + line for line in lines)]


def _lines_of_words(words: Sequence[str], width: int) -> list[str]:
    """Words put into as few lines as they fit in; at least one."""
    lines = [""]
    for word in (shortened(word, width) for word in words):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines
