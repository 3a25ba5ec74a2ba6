"""Which layout of a table a checkpoint is."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import msgspec

from ckptforge.errors import CkptforgeError, LayoutError
from ckptforge.spelling import command, option
from ckptforge.tables.binding import Binding, Shapes, bind
from ckptforge.tables.model_config import Config
from ckptforge.tables.names import recognise_names
from ckptforge.tables.table import FAMILY_NAMES, Layout, Table

# families that the kind of the files tells
_TOLD_BY_FILES = frozenset({"consolidated", "megatron"})


class Hints(msgspec.Struct, frozen=True):
    """What is known beside the tensors; `family` is the only one that is read."""

    config: Config
    config_source: str
    model: str | None = None
    layout: str | None = None
    recorded_layout: str | None = None
    family: str | None = None


def recognise(table: Table, shapes: Shapes, hints: Hints) -> Binding:
    """Reads the tensors as the layout named in the hints, else as the only layout (of a family)
    that fits them.

    Raises `LayoutError` when none fits, with the reason of the nearest, and when several do.
    """
    candidates = readable(table, hints)
    if hints.layout is not None:
        layout = table.layout(hints.layout)
        try:
            return bind(table, layout, shapes, hints.config, hints.config_source)
        except LayoutError as error:
            found = fitting(table, shapes, hints, candidates)
            others = [name for name in found if name != layout.name]
            advice = f" The tensors fit layout {' or '.join(others)}." if others else ""
            raise type(error)(
                f"not layout {layout.name}: {error}{advice}", error.tensors
            ) from error
    found = fitting(table, shapes, hints, candidates)
    if hints.recorded_layout in found:
        return found[hints.recorded_layout]
    kinds = {frozenset((p.template, p.axes) for p in one.names) for one in found.values()}
    if len(kinds) == 1:  # one, or several that differ in what this model doesn't have
        return next(iter(found.values()))
    if found:
        raise LayoutError(
            f"the tensors fit layouts {' and '.join(found)} alike: their names and shapes are the "
            f"same, only what is in them differs. Name the right one with {option('layout')}."
        )
    told = (one for one in table.layouts.values() if not one.by_name_only)
    there = fitting(table, shapes, hints, [one for one in told if one not in candidates])
    if there or not candidates:
        raise LayoutError(_not_read(table, hints, candidates, there))
    nearest = max(candidates, key=lambda layout: known_names(layout, shapes))
    try:
        bind(table, nearest, shapes, hints.config, hints.config_source)
    except LayoutError as error:
        raise type(error)(
            f"the tensors fit no layout of {table.name}; nearest is {nearest.name}: {error}",
            error.tensors,
        ) from error
    raise AssertionError("a layout that fits was not found fitting")


def _not_read(
    table: Table, hints: Hints, candidates: Iterable[Layout], there: Iterable[str]
) -> str:
    """Which layouts are read, and which one the tensors are in, if any."""
    read = ", ".join(layout.name for layout in candidates)
    use = f"Use {command('convert')}"
    found = f"the tensors are in layout {' or '.join(there)}, which" if there else ""
    if read:
        way = f"{use}, or the command for the other direction."
        return f"{found} this command doesn't read: it reads {read}. {way}"
    family = FAMILY_NAMES.get(str(hints.family), str(hints.family))
    has = f"only layouts of {family} are read here, and {table.name} has none: it has"
    found = f"{found} isn't read here: " if there else ""
    return f"{found}{has} {', '.join(table.layouts)}. {use}, which reads and writes all of them."


def fitting(
    table: Table, shapes: Shapes, hints: Hints, candidates: Iterable[Layout]
) -> dict[str, Binding]:
    """Name of a layout → the tensors read as it, of those that fit."""
    found = {}
    for layout in candidates:
        with suppress(CkptforgeError):
            found[layout.name] = bind(table, layout, shapes, hints.config, hints.config_source)
    return found


def readable(table: Table, hints: Hints) -> list[Layout]:
    """The layouts that may be meant, those by name only where they are named."""
    named = (hints.layout, hints.recorded_layout)
    meant = {hints.family} if hints.family is not None else {*table.by_family} - _TOLD_BY_FILES
    return [
        layout
        for layout in table.layouts.values()
        if layout.name in named or (not layout.by_name_only and layout.family in meant)
    ]


def known_names(layout: Layout, shapes: Shapes) -> int:
    """How many of the tensors have names of a layout."""
    return len(shapes) - len(recognise_names(layout, shapes)[1])
