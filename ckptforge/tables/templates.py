"""The rules of the names in a layout: each can be read back, and no two are the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from ckptforge.errors import shown
from ckptforge.tables.axes import Pattern, is_number
from ckptforge.tables.selection import is_selection
from ckptforge.wording import nearest


def check_template(pattern: Pattern, axes: Mapping[str, str]) -> None:
    """Raises `ValueError` with the rule that the template of a name breaks."""
    template = pattern.template
    if stray := next((word for word in pattern.words if word in "{}"), None):
        raise ValueError(f"{template!r} has a stray {stray!r}")
    if "#" in template or not template.isprintable():
        raise ValueError(
            f"{shown(template)} has a '#' or an unprintable character, which no name may have"
        )
    if len(set(pattern.name_axes)) < len(pattern.name_axes):
        raise ValueError(f"{template!r} has one axis twice")
    for offset in pattern.offsets.values():
        if offset not in axes:
            raise ValueError(
                f"{template!r} adds the length of {offset!r}, which isn't in "
                f"[axes].{nearest(offset, axes)}"
            )
    for axis, offset in pattern.offsets.items():
        if selected := [one for one in (axis, offset) if is_selection(axes.get(one, ""))]:
            raise ValueError(
                f"{template!r} adds a length, but {selected[0]!r} counts only some of another "
                "axis, whose numbers stand in the name as they are"
            )
    if any(a and b for a, b in pairwise(map(is_number, pattern.words))):
        raise ValueError(f"in {template!r} two numbers touch, so that a name can't be read back")


def find_clash(
    pattern: Pattern, others: Iterable[Pattern], axes: Mapping[str, str]
) -> Pattern | None:
    """The first of the others that can produce the same name as a pattern; `axes` as they are
    written in [axes]."""
    return next((other for other in others if _can_clash(pattern, other, axes)), None)


def _can_clash(a: Pattern, b: Pattern, axes: Mapping[str, str]) -> bool:
    """Whether two templates can produce one name: alike in text, and no place where both write
    different numbers. Those that add something to an index at one place are told apart by the
    lengths of the axes, and those of which each has another axis there that counts only some
    indexes, by these."""
    if a.skeleton != b.skeleton:
        return False
    words = list(zip(a.words, b.words, strict=True))
    if any(x != y and "+" in x + y for x, y in words):
        return False
    selected = {f"{{{axis}}}" for axis, text in axes.items() if is_selection(text)}
    if any(x != y and x in selected and y in selected for x, y in words):
        return False
    return all(x == y or x.startswith("{") or y.startswith("{") for x, y in words)
