"""Which model and which layout a checkpoint is, told by config.json, by the tensors' names and, at last, by their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ckptforge.errors import CkptforgeError, LayoutError, ModelUnknownError, UsageError, listing, nearest
from ckptforge.mapping.binding import Binding, Shapes, bind, recognise_names
from ckptforge.mapping.table import Table
from ckptforge.spelling import command, option


class Hints(msgspec.Struct, frozen=True):
    """What is known beside the tensors. `option` is the keyword that names the layout, for messages."""

    config: Mapping[str, Any]
    config_source: str
    model: str | None = None
    layout: str | None = None
    recorded_layout: str | None = None
    option: str = "from_"


def choose_table(tables: Sequence[Table], shapes: Shapes, hints: Hints) -> Table:
    """The table of the model, by its name if given, else by config.json's model_type, else by the tensors' names.

    Raises `UsageError` for an unknown name and `ModelUnknownError`, with what was seen, when none or several fit.
    """
    known = ", ".join(table.name for table in tables)
    if hints.model is not None:
        by_name = [table for table in tables if table.name == hints.model]
        if not by_name:
            raise UsageError(f"model {hints.model!r} is unknown; tables: {known}.{nearest(hints.model, (table.name for table in tables))}")
        return by_name[0]
    model_type = hints.config.get("model_type")
    by_type = [table for table in tables if model_type in table.model_types]
    if len(by_type) == 1:
        return by_type[0]
    candidates = by_type or tables
    scores = {table.name: max(_recognised(table, layout, shapes) for layout in table.layouts) for table in candidates}
    best = max(scores.values(), default=0)
    fitting = [table for table in candidates if scores[table.name] == best]
    if best * 2 <= len(shapes) or len(fitting) > 1:
        seen = f"{hints.config_source} has model_type {model_type!r}" if model_type else "there is no config.json"
        raise ModelUnknownError(
            f"no mapping table fits this checkpoint: {seen}, and of {len(shapes)} tensor names at most {best} are known "
            f"(tables: {known}). Its first tensors:\n{listing(sorted(shapes), 5)}\n"
            f"Name a table with {option('model')}, or give your own with {option('mapping')}."
        )
    return fitting[0]


def _recognised(table: Table, layout: str, shapes: Shapes) -> int:
    return len(shapes) - len(recognise_names(table.layouts[layout], shapes)[1])


def recognise(table: Table, shapes: Shapes, hints: Hints, family: str | None = None) -> Binding:
    """Reads the tensors as the layout named in the hints, else as the only layout (of a family) that fits them.

    Raises `LayoutError` when none fits, with the reason of the nearest, and when several do.
    """
    candidates = [
        layout
        for layout in table.layouts.values()
        if family in (None, layout.family) and (not layout.by_name_only or layout.name in (hints.layout, hints.recorded_layout))
    ]
    if hints.layout is not None:
        layout = table.layout(hints.layout)
        try:
            return bind(table, layout, shapes, hints.config, hints.config_source)
        except LayoutError as error:
            others = [name for name in _fitting(table, shapes, hints, candidates) if name != layout.name]
            advice = f" The tensors fit layout {' or '.join(others)}." if others else ""
            raise type(error)(f"not layout {layout.name}: {error}{advice}", error.tensors) from error
    fitting = _fitting(table, shapes, hints, candidates)
    if hints.recorded_layout in fitting:
        return fitting[hints.recorded_layout]
    if len({frozenset((pattern.template, pattern.axes) for pattern in binding.names) for binding in fitting.values()}) == 1:
        return next(iter(fitting.values()))  # one, or several that differ in what this model doesn't have
    if fitting:
        raise LayoutError(
            f"the tensors fit layouts {' and '.join(fitting)} alike: their names and shapes are the same, only what is in them differs. "
            f"Name the right one with {option(hints.option)}."
        )
    if elsewhere := _fitting(
        table, shapes, hints, [layout for layout in table.layouts.values() if layout not in candidates and not layout.by_name_only]
    ):
        raise LayoutError(
            f"the tensors are in layout {' or '.join(elsewhere)}, which this command doesn't read: it reads "
            f"{', '.join(layout.name for layout in candidates)}. Use {command('convert')}, or the command for the other direction."
        )
    nearest = max(candidates, key=lambda layout: _recognised(table, layout.name, shapes))
    try:
        bind(table, nearest, shapes, hints.config, hints.config_source)
    except LayoutError as error:
        raise type(error)(f"the tensors fit no layout of {table.name}; nearest is {nearest.name}: {error}", error.tensors) from error
    raise AssertionError("a layout that fits was not found fitting")


def _fitting(table: Table, shapes: Shapes, hints: Hints, candidates: Sequence[Any]) -> dict[str, Binding]:
    fitting = {}
    for layout in candidates:
        try:
            fitting[layout.name] = bind(table, layout, shapes, hints.config, hints.config_source)
        except CkptforgeError:
            continue
    return fitting
