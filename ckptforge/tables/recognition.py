"""Which model and which layout a checkpoint is, detected from config.json, from the tensors' names
and, last, from their shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.errors import (
    CkptforgeError,
    LayoutError,
    MissingTensorsError,
    ModelUnknownError,
    UsageError,
    counted,
    listing,
    nearest,
    shown,
)
from ckptforge.spelling import command, option
from ckptforge.tables.binding import Binding, Shapes, bind, recognise_names
from ckptforge.tables.prefixes import Renaming, adapted, common_prefix, renamings
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.table import Layout, Table

_CLASS = re.compile(r"(\w+?)(?:For\w+|LMHeadModel|Model)?")


class Hints(msgspec.Struct, frozen=True):
    """What is known beside the tensors. `option` is the keyword that names the layout, for
    messages."""

    config: Mapping[str, Any]
    config_source: str
    model: str | None = None
    layout: str | None = None
    recorded_layout: str | None = None
    option: str = "from_"


class Identified(msgspec.Struct, frozen=True):
    """A binding, what was done to the names before, and a sentence about what the model was known
    by, where that may be wrong."""

    binding: Binding
    renaming: Renaming | None = None
    note: str = ""

    def renamed(self, name: str) -> str:
        """The layout's name of a stored tensor."""
        return name if self.renaming is None else self.renaming.names.get(name, name)


def identify(
    tables: Sequence[Table], shapes: Shapes, hints: Hints, family: str | None = None
) -> Identified:
    """The table and the layout of a checkpoint, with what stands before the layout's names taken
    off.

    Raises `ModelUnknownError` and `LayoutError`, which say what is there, and `UsageError`.
    """
    try:
        table = choose_table(tables, shapes, hints, family)
        return Identified(recognise(table, shapes, hints, family), None, _known_by(table, hints))
    except (LayoutError, ModelUnknownError) as error:
        first = error
    found = adapted(shapes)
    if found and len(found) < len(shapes):
        raise MissingTensorsError(
            "holds a model that peft has wrapped, its adapter not merged: "
            f"{counted(len(found), 'tensor')} such as {shown(found[0])}. Merge it with "
            "merge_and_unload() and save the result; or save the adapter alone with "
            f"save_pretrained and add it to the base model with {option('merge_lora')}."
        ) from first
    identified, reason = _renamed(tables, shapes, hints, family)
    if identified is not None:
        return identified
    raise (
        reason
        or _contradiction(tables, shapes, hints, family, isinstance(first, MissingTensorsError))
        or first
    )


def _known_by(table: Table, hints: Hints) -> str:
    if hints.model is not None or hints.config.get("model_type") in table.model_types:
        return ""
    if not hints.config:
        return f"there is no config.json: treated as {table.name}, from the tensor names."
    return (
        f"{hints.config_source} has no model_type: treated as {table.name}, from "
        f"{_clue(table, hints)}."
    )


def _clue(table: Table, hints: Hints) -> str:
    return "its architectures" if _has_class(table, hints.config) else "the tensor names"


def _renamed(
    tables: Sequence[Table], shapes: Shapes, hints: Hints, family: str | None
) -> tuple[Identified | None, LayoutError | ModelUnknownError | None]:
    """The model under other names, or what is wrong with them."""
    layouts = [
        layout
        for table in _possible(tables, hints)
        for layout in table.layouts.values()
        if family in (None, layout.family)
    ]
    found: list[tuple[Identified, Renaming]] = []
    flawed: LayoutError | None = None
    reason: LayoutError | ModelUnknownError | None = None
    for renaming in renamings(layouts, list(shapes)):
        renamed = {renaming.names.get(name, name): shape for name, shape in shapes.items()}
        try:
            table = choose_table(tables, renamed, hints, family)
            identified = Identified(
                recognise(table, renamed, hints, family), renaming, _known_by(table, hints)
            )
        except (LayoutError, ModelUnknownError) as error:
            if reason is None and len(renaming.names) * 2 > len(shapes):
                reason = type(error)(f"{renaming.said}; but then {error}")
            continue
        if not renaming.flaw:
            found.append((identified, renaming))
        elif flawed is None:
            said = renaming.said.replace(", which is", ", which would be")
            flawed = LayoutError(
                f"{said}, but {renaming.flaw}. Save the model again without that prefix."
            )
    whole = [
        one
        for one in found
        if not any(one[1].names.items() < other.names.items() for _, other in found)
    ]
    if len(whole) > 1:
        listed = "\n".join(f"  {renaming.said}" for _, renaming in whole)
        return None, LayoutError(
            f"holds several models, each of which fits:\n{listed}\nKeep the tensors of one."
        )
    return (whole[0][0], None) if whole else (None, flawed or reason)


def _possible(tables: Sequence[Table], hints: Hints) -> list[Table]:
    """The tables that the name given, or config.json, leaves."""
    if hints.model is not None:
        return [table for table in tables if table.name == hints.model]
    model_type = hints.config.get("model_type")
    by_type = [table for table in tables if model_type in table.model_types]
    if not by_type and model_type is None:
        by_type = [table for table in tables if _has_class(table, hints.config)]
    return by_type or list(tables)


def _has_class(table: Table, config: Mapping[str, Any]) -> bool:
    """Whether config.json names a class of the table's models: its name without underscores, and
    what it is for."""
    names = config.get("architectures")
    found = {
        match[1].lower()
        for name in (names if isinstance(names, list) else ())
        if (match := _CLASS.fullmatch(str(name)))
    }
    return bool(found & {model_type.replace("_", "") for model_type in table.model_types})


def choose_table(
    tables: Sequence[Table], shapes: Shapes, hints: Hints, family: str | None = None
) -> Table:
    """The table of the model, by its name if given, else by config.json's model_type or
    architectures, else the only one that the tensors fit.

    Raises `UsageError` for an unknown name and `ModelUnknownError`, with what was seen, when none
    or several fit.
    """
    if hints.model is not None:
        by_name = [table for table in tables if table.name == hints.model]
        if not by_name:
            names = [table.name for table in tables]
            raise UsageError(
                f"model {hints.model!r} is unknown; tables: "
                f"{', '.join(names)}.{nearest(hints.model, names)}"
            )
        return by_name[0]
    candidates = _possible(tables, hints)
    if len(candidates) == 1 and candidates[0].name not in _others(tables, hints):
        return candidates[0]
    known = {table.name: _best(table, shapes) for table in candidates}
    best = max((count for count, _ in known.values()), default=0)
    closest = [table for table in candidates if known[table.name][0] == best]
    if best and len(closest) > 1:
        fitting = [
            table
            for table in closest
            if _fitting(table, shapes, hints, _readable(table, hints, family))
        ]
        lacking = {
            table.name: _lack(table, known[table.name][1], shapes) for table in fitting or closest
        }
        closest = [
            table for table in fitting or closest if lacking[table.name] == min(lacking.values())
        ]
    model_type = hints.config.get("model_type")
    if best * 2 > len(shapes) and len(closest) == 1 and model_type is None:
        return closest[0]
    raise ModelUnknownError(_unknown(candidates, closest, known, shapes, hints))


def _others(tables: Sequence[Table], hints: Hints) -> set[str]:
    """All tables, where nothing in config.json tells which is meant."""
    model_type = hints.config.get("model_type")
    told = any(
        model_type in table.model_types or (model_type is None and _has_class(table, hints.config))
        for table in tables
    )
    return set() if told else {table.name for table in tables}


def _unknown(
    candidates: Sequence[Table],
    closest: Sequence[Table],
    known: Mapping[str, tuple[int, Layout]],
    shapes: Shapes,
    hints: Hints,
) -> str:
    """Why no table was chosen: what config.json says, and what differs from the closest."""
    model_type = hints.config.get("model_type")
    best, layout = known[closest[0].name]
    names = " and ".join(table.name for table in closest)
    tables = ", ".join(table.name for table in candidates)
    seen = (
        f"{hints.config_source} has model_type {shown(model_type)}, which no table supports"
        if model_type
        else "no model_type is known"
    )
    if not hints.config:
        seen = "there is no config.json"
    if best == len(shapes):
        one = len(closest) == 1
        ways = (
            f"name the table with {option('model', closest[0].name)}"
            if one
            else f"name the right one with {option('model')}"
        )
        if len(closest) == 1:
            return (
                f"no mapping table fits this checkpoint: {seen} (tables: {tables}), but all "
                f"{counted(best, 'tensor')} have names of {names}. If the model computes as that "
                f"does, {ways}; else give a table of its own with {option('mapping')}."
            )
        return (
            f"several mapping tables fit this checkpoint ({names}): {seen}. Give its config.json "
            f"with {option('config')}, or {ways}."
        )
    unknown = sorted(recognise_names(layout, shapes)[1])
    prefix = common_prefix(shapes)
    begin = f" All names begin with {shown(prefix)}." if prefix and not best else ""
    missing = _lacking(closest[0], layout, shapes)
    expects = f"\nThat layout has, for example:\n{listing(missing, 3)}" if best and missing else ""
    near = f"; nearest is {names}, layout {layout.name}" if best else ""
    return (
        f"no mapping table fits this checkpoint: {seen}, and of "
        f"{counted(len(shapes), 'tensor name')} at most {best} are known (tables: "
        f"{tables}){near}.{begin} First unknown tensors:\n"
        f"{listing(unknown, 5)}{expects}\n"
        f"Name a table with {option('model')}, give the model's config.json with "
        f"{option('config')}, or your own table with {option('mapping')}."
    )


def _contradiction(
    tables: Sequence[Table], shapes: Shapes, hints: Hints, family: str | None, lacking: bool
) -> ModelUnknownError | None:
    """That config.json names a model, and the tensors are those of another: which knows more of
    them, or, where the model that is named lacks some (`lacking`), has no more than these."""
    model_type, meant = hints.config.get("model_type"), _possible(tables, hints)
    if hints.model is not None or len(meant) != 1 or model_type not in meant[0].model_types:
        return None
    plain = replace(hints, config={}, layout=None)
    for table in shipped_tables():
        if table.name not in {other.name for other in tables}:
            known, other = _best(table, shapes)[0], _best(meant[0], shapes)[0]
            if (
                known == len(shapes)
                and (other < known or lacking)
                and _fitting(table, shapes, plain, _readable(table, plain, family))
            ):
                return ModelUnknownError(
                    f"{hints.config_source} has model_type {shown(model_type)}, but the tensors "
                    f"are those of {table.name}. Give the model's own config.json with "
                    f"{option('config')}; or, if only model_type is wrong in it, name the table "
                    f"with {option('model', table.name)}."
                )
    return None


def _best(table: Table, shapes: Shapes) -> tuple[int, Layout]:
    """The layout that knows most names, and how many."""
    return max(
        ((_recognised(layout, shapes), layout) for layout in table.layouts.values()),
        key=lambda pair: pair[0],
    )


def _lack(table: Table, layout: Layout, shapes: Shapes) -> tuple[int, int]:
    """How much of a layout isn't there: what it always has, and what it may have."""
    found, _ = recognise_names(layout, shapes)
    return len(_lacking(table, layout, shapes)), sum(
        pattern not in found for pattern in layout.patterns
    )


def _lacking(table: Table, layout: Layout, shapes: Shapes) -> list[str]:
    """What a layout always has and the checkpoint doesn't, as templates."""
    found, _ = recognise_names(layout, shapes)
    return [
        p.template
        for p in layout.patterns
        if p not in found and not set(p.tensors) <= set(table.optional)
    ]


def _recognised(layout: Layout, shapes: Shapes) -> int:
    return len(shapes) - len(recognise_names(layout, shapes)[1])


def _readable(table: Table, hints: Hints, family: str | None) -> list[Layout]:
    return [
        layout
        for layout in table.layouts.values()
        if family in (None, layout.family)
        and (not layout.by_name_only or layout.name in (hints.layout, hints.recorded_layout))
    ]


def recognise(table: Table, shapes: Shapes, hints: Hints, family: str | None = None) -> Binding:
    """Reads the tensors as the layout named in the hints, else as the only layout (of a family)
    that fits them.

    Raises `LayoutError` when none fits, with the reason of the nearest, and when several do.
    """
    candidates = _readable(table, hints, family)
    if hints.layout is not None:
        layout = table.layout(hints.layout)
        try:
            return bind(table, layout, shapes, hints.config, hints.config_source)
        except LayoutError as error:
            others = [
                name for name in _fitting(table, shapes, hints, candidates) if name != layout.name
            ]
            advice = f" The tensors fit layout {' or '.join(others)}." if others else ""
            raise type(error)(
                f"not layout {layout.name}: {error}{advice}", error.tensors
            ) from error
    fitting = _fitting(table, shapes, hints, candidates)
    if hints.recorded_layout in fitting:
        return fitting[hints.recorded_layout]
    if (
        len(
            {
                frozenset((pattern.template, pattern.axes) for pattern in binding.names)
                for binding in fitting.values()
            }
        )
        == 1
    ):
        # one, or several that differ in what this model doesn't have
        return next(iter(fitting.values()))
    if fitting:
        raise LayoutError(
            f"the tensors fit layouts {' and '.join(fitting)} alike: their names and shapes are "
            "the same, only what is in them differs. Name the right one with "
            f"{option(hints.option)}."
        )
    if elsewhere := _fitting(
        table,
        shapes,
        hints,
        [
            layout
            for layout in table.layouts.values()
            if layout not in candidates and not layout.by_name_only
        ],
    ):
        raise LayoutError(
            f"the tensors are in layout {' or '.join(elsewhere)}, which this command doesn't read: "
            f"it reads {', '.join(layout.name for layout in candidates)}. Use "
            f"{command('convert')}, or the command for the other direction."
        )
    nearest = max(candidates, key=lambda layout: _recognised(layout, shapes))
    try:
        bind(table, nearest, shapes, hints.config, hints.config_source)
    except LayoutError as error:
        raise type(error)(
            f"the tensors fit no layout of {table.name}; nearest is {nearest.name}: {error}",
            error.tensors,
        ) from error
    raise AssertionError("a layout that fits was not found fitting")


def _fitting(
    table: Table, shapes: Shapes, hints: Hints, candidates: Sequence[Any]
) -> dict[str, Binding]:
    fitting = {}
    for layout in candidates:
        try:
            fitting[layout.name] = bind(table, layout, shapes, hints.config, hints.config_source)
        except CkptforgeError:
            continue
    return fitting
