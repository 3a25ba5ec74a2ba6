"""HTML as text that is escaped once, where it is put together."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from typing import Any

from ckptforge.errors import printable

_VOID = {"meta", "input", "wbr"}
_OF_SVG = {"rect", "line", "circle"}

Child = str | Iterable["Child"]


class Markup(str):
    """Text that is HTML already; any other is escaped by `tag`."""

    __slots__ = ()


def tag(name: str, /, *children: Child | None, **attributes: str | float | bool | None) -> Markup:
    """An element. Attributes of None or False are left out, those of True have no value; in their
    names `_` stands for `-`, and one at the end for nothing: `class_`."""
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{_escaped(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    inner = joined(*children)
    if name in _OF_SVG and not inner:
        return Markup(f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{inner}</{name}>")


def joined(*children: Child | None) -> Markup:
    """Elements and texts, one after the other."""
    parts = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(Markup(_escaped(child)))
        elif child is not None:
            parts.append(joined(*child))
    return Markup("".join(parts))


def breakable(name: str) -> Markup:
    """A name that a line may end in, after a dot or a slash."""
    if isinstance(name, Markup):
        return name
    pieces = re.split(r"(?<=[./])(?=[^./])", name)
    return Markup(tag("wbr").join(_escaped(piece) for piece in pieces))


def data(name: str, content: Any) -> Markup:
    """JSON for a script, in an element with this id: no text in it can end the element."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    opening = f'<script type="application/json" id="{_escaped(name)}">'
    return Markup(f"{opening}{text}</script>")


def _escaped(text: str) -> str:
    return html.escape(printable(text), quote=True)
