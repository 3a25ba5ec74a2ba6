"""Figures of a checkpoint as one HTML page without anything from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckptforge.errors import OutputError
from ckptforge.foreign.paths import exists
from ckptforge.publish.output_name import refuse_address
from ckptforge.publish.single_file import write_file
from ckptforge.spelling import flag
from ckptforge.wording import counted

if TYPE_CHECKING:
    from ckptforge.verbs.stats import Figures, Statistics

TITLES = ("min", "max", "mean", "std", "zeros", "NaN", "inf")
_STYLE = (
    "body{font:14px sans-serif;margin:2em}td,th{padding:2px "
    "10px;text-align:right;border-bottom:1px solid "
    "#ddd}td:first-child,th:first-child{text-align:left}tr.bad td{color:#c33}"
)


def cells_of(figures: Figures) -> list[str]:
    """The figures under `TITLES`."""
    numbers = (figures.min, figures.max, figures.mean, figures.std)
    counts = (figures.zeros, figures.nan, figures.infinite)
    return [*(f"{one:.4g}" for one in numbers), *(f"{one:,}" for one in counts)]


def refuse_page(page: Path, overwrite: bool) -> None:
    """Raises `OutputError` for a page that is there already, unless it may be replaced, and
    `UsageError` for an address."""
    refuse_address(page)
    if exists(page) and not overwrite:
        raise OutputError(f"{page}: exists already; give {flag('overwrite')} to replace it.")


def write_page(page: Path, found: Statistics) -> None:
    """Writes the page. Raises `OutputError`."""
    about = f"{found.model or 'any model'}, layout {found.layout or 'not recognised'}"
    kinds = (
        (kind, [str(one.tensors), f"{one.count:,}", *cells_of(one)], one)
        for kind, one in found.kinds.items()
    )
    tensors = (
        (name, [one.dtype, str(list(one.shape)), *cells_of(one.figures)], one.figures)
        for name, one in found.tensors.items()
    )
    body = (
        f"<h1>{html.escape(str(found.path))}</h1><p>{html.escape(about)}, "
        f"{counted(len(found.tensors), 'tensor')}</p><h2>By "
        f"kind</h2>{_table(('kind', 'tensors', 'numbers', *TITLES), kinds)}<h2>By "
        f"tensor</h2>{_table(('tensor', 'dtype', 'shape', *TITLES), tensors)}"
    )
    head = f"<meta charset=utf-8><title>ckptforge stats</title><style>{_STYLE}</style>"
    write_file(page, f"<!doctype html><html lang=en>{head}{body}</html>\n".encode())


def _table(titles: Sequence[str], rows: Iterable[tuple[str, list[str], Figures]]) -> str:
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    lines = []
    for name, cells, figures in rows:
        bad = " class=bad" if figures.nan or figures.infinite else ""
        inner = "".join(f"<td>{html.escape(cell)}</td>" for cell in (name, *cells))
        lines.append(f"<tr{bad}>{inner}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"
