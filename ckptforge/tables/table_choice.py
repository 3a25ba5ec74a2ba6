"""Which table a checkpoint's model is described by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ckptforge.errors import ModelUnknownError, shown
from ckptforge.spelling import option
from ckptforge.tables.binding import Shapes
from ckptforge.tables.layer_counts import table_for
from ckptforge.tables.layout_choice import Hints, fitting, known_names, readable
from ckptforge.tables.model_config import Config, classes_of
from ckptforge.tables.names import recognise_names
from ckptforge.tables.prefixes import common_prefix
from ckptforge.tables.selection import selections_of
from ckptforge.tables.skeletons import skeletons_of
from ckptforge.tables.table import Layout, Table, table_named
from ckptforge.wording import counted, listing

_CLASS = re.compile(r"(\w+?)(?:For\w+|LMHeadModel|Model)?")


class Near(NamedTuple):
    """The layout of a table that knows most names, and how many."""

    known: int
    layout: Layout


def possible_tables(tables: Sequence[Table], hints: Hints) -> list[Table]:
    """The tables that the name given, or config.json, leaves."""
    if hints.model is not None:
        return [table for table in tables if table.name == hints.model]
    return _told(tables, hints) or list(tables)


def _told(tables: Sequence[Table], hints: Hints) -> list[Table]:
    """The tables of config.json's model_type, or where it has none of its classes."""
    model_type = hints.config.get("model_type")
    if model_type is None:
        return [table for table in tables if has_class(table, hints.config)]
    return [table for table in tables if model_type in table.model_types]


def has_class(table: Table, config: Config) -> bool:
    """Whether config.json names a class of the table's models."""
    classes = map(_CLASS.fullmatch, classes_of(config))
    found = {match[1].lower() for match in classes if match}
    return bool(found & {model_type.replace("_", "") for model_type in table.model_types})


def nearest_layout(table: Table, shapes: Shapes) -> Near:
    """The layout that knows most names."""
    near = (Near(known_names(layout, shapes), layout) for layout in table.layouts.values())
    return max(near, key=lambda one: one.known)


def choose_table(tables: Sequence[Table], shapes: Shapes, hints: Hints) -> Table:
    """The table of the model, by its name if given, else by config.json's model_type or
    architectures, else the only one that the tensors fit; as it is for layers that differ.

    Raises `UsageError` for an unknown name, `ModelUnknownError`, with what was seen, when none or
    several fit, and `ConfigError`.
    """
    return table_for(_chosen(tables, shapes, hints), hints.config, hints.config_source)


def _chosen(tables: Sequence[Table], shapes: Shapes, hints: Hints) -> Table:
    if hints.model is not None:
        return table_named(tables, hints.model)
    told = _told(tables, hints)
    if len(told) == 1:
        return told[0]
    candidates = told or [table for table in tables if _has_its_parts(table, shapes)]
    near = {table.name: nearest_layout(table, shapes) for table in candidates}
    best = max((one.known for one in near.values()), default=0)
    closest = [table for table in candidates if near[table.name].known == best]
    if best and len(closest) > 1:
        fits = [t for t in closest if fitting(t, shapes, hints, readable(t, hints))] or closest
        lacking = {t.name: _lacking(t, near[t.name].layout, shapes) for t in fits}
        amounts = {name: (len(always), absent) for name, (always, absent) in lacking.items()}
        closest = [table for table in fits if amounts[table.name] == min(amounts.values())]
    if best * 2 > len(shapes) and len(closest) == 1 and hints.config.get("model_type") is None:
        return closest[0]
    raise ModelUnknownError(_unknown(told or tables, closest, near, shapes, hints))


def _has_its_parts(table: Table, shapes: Shapes) -> bool:
    """Whether something is there of what a table's models have beside the language model, which
    alone is another table's."""
    layouts, towers = table.layouts.values(), table.in_towers
    if not table.passed or any(one.passes(name) for one in layouts for name in shapes):
        return True
    own = {one.holding(tensor).skeleton for one in layouts for tensor in towers}
    return bool(own) and any(skeleton in own for skeleton, _ in skeletons_of(shapes))


def _unknown(
    known: Sequence[Table],
    closest: Sequence[Table],
    near: Mapping[str, Near],
    shapes: Shapes,
    hints: Hints,
) -> str:
    """Why no table was chosen: what config.json says, and what differs from the closest."""
    model_type = hints.config.get("model_type")
    best, layout = near[closest[0].name]
    names = " and ".join(table.name for table in closest)
    tables = ", ".join(table.name for table in known)
    seen = "no model_type is known"
    if not hints.config:
        seen = "there is no config.json"
    elif model_type:
        seen = f"{hints.config_source} has model_type {shown(model_type)}, which no table supports"
    if best == len(shapes) and len(closest) == 1:
        return (
            f"no mapping table fits this checkpoint: {seen} (tables: {tables}), but all "
            f"{counted(best, 'tensor')} have names of {names}. If the model computes as that does, "
            f"name the table with {option('model', names)}; else give a table of its own with "
            f"{option('mapping')}."
        )
    if best == len(shapes):
        return (
            f"several mapping tables fit this checkpoint ({names}): {seen}. Give its config.json "
            f"with {option('config')}, or name the right one with {option('model')}."
        )
    unknown = sorted(recognise_names(layout, shapes)[1])
    prefix = common_prefix(shapes)
    begin = f" All names begin with {shown(prefix)}." if prefix and not best else ""
    missing, _ = _lacking(closest[0], layout, shapes)
    expects = f"\nThat layout has, for example:\n{listing(missing, 3)}" if best and missing else ""
    nearby = f"; nearest is {names}, layout {layout.name}" if best else ""
    return (
        f"no mapping table fits this checkpoint: {seen}, and of "
        f"{counted(len(shapes), 'tensor name')} at most {best} are known (tables: {tables})"
        f"{nearby}.{begin} First unknown tensors:\n{listing(unknown, 5)}{expects}\n"
        f"Name a table with {option('model')}, give the model's config.json with "
        f"{option('config')}, or your own table with {option('mapping')}."
    )


def _lacking(table: Table, layout: Layout, shapes: Shapes) -> tuple[list[str], int]:
    """(what a layout always has and the checkpoint doesn't, as templates; how many patterns of it
    aren't there in all)."""
    found, _ = recognise_names(layout, shapes)
    lacking = [p for p in layout.patterns if p not in found]
    some = {axis for axis, _ in selections_of(table.axes)}  # layers of a kind that there may not be
    needed = (p for p in lacking if some.isdisjoint(p.name_axes))
    always = [p.template for p in needed if not set(p.tensors) <= set(table.optional)]
    return always, len(lacking)
