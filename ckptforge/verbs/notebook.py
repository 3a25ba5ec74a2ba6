"""What a notebook shows of an opened model."""

from __future__ import annotations

import html
from collections.abc import Mapping

from ckptforge.values import Value
from ckptforge.wording import counted

_SHOWN = 20  # rows of a table


def table_of(title: str, values: Mapping[str, Value]) -> str:
    """The first tensors as a table in HTML, with how many more there are."""
    rows = [
        f"<tr><td>{html.escape(name)}</td><td>{value.dtype}</td>"
        f"<td>{' × '.join(map(str, value.shape))}</td></tr>"
        for name, value in list(values.items())[:_SHOWN]
    ]
    if (more := len(values) - _SHOWN) > 0:
        rows.append(f"<tr><td colspan=3>and {counted(more, 'more tensor')}</td></tr>")
    head = "<tr><th>tensor</th><th>dtype</th><th>shape</th></tr>"
    return f"<p>{html.escape(title)}</p><table>{head}{''.join(rows)}</table>"
