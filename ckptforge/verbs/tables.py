"""Mapping tables for people: which there are, what they hold, whether one is right."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from ckptforge.errors import UsageError
from ckptforge.reading.known import read_model_config
from ckptforge.tables.axes import Pattern
from ckptforge.tables.layer_counts import table_for
from ckptforge.tables.model_config import Config
from ckptforge.tables.parsing import load_table
from ckptforge.tables.pieces import name_pieces
from ckptforge.tables.sharding import BY_AXES, Sharding, stored_cuts, stored_fsdp
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.sizes import lengths_of
from ckptforge.tables.table import Layout, Table
from ckptforge.verbs.options import MappingCheck, MappingShow
from ckptforge.verbs.public import verb
from ckptforge.wording import nearest


@dataclass(frozen=True)
class Summary:
    """A shipped table: its `layouts` by family, and the model_types that it is for."""

    name: str
    model_types: list[str]
    layouts: dict[str, list[str]]
    tensors: int


@dataclass(frozen=True)
class Row:
    """How a layout stores a kind of tensor; `operation` makes it of `against`."""

    name: str
    axes: str
    holds: list[str]
    operation: str
    cut: str


@dataclass(frozen=True)
class Description:
    """A layout of a table, and the layout that its operations start from."""

    table: str
    layout: str
    family: str
    against: str
    axes: dict[str, str]
    rows: list[Row]


@dataclass(frozen=True)
class Count:
    """A model's numbers of stored tensors and of parameters in one layout."""

    layout: str
    tensors: int
    parameters: int


@dataclass(frozen=True)
class Checked:
    """A table that keeps all rules; `counts` where a config.json was given."""

    table: str
    source: str
    layouts: list[str]
    counts: list[Count]


def list_tables() -> list[Summary]:
    """The tables that come with ckptforge."""
    return [
        Summary(
            name=table.name,
            model_types=list(table.model_types),
            layouts=table.by_family,
            tensors=len(table.tensors),
        )
        for table in shipped_tables()
    ]


def find_table(name: str | Path) -> Table:
    """A shipped table by its name, else one in a file. Raises `UsageError` for neither."""
    by_name = {table.name: table for table in shipped_tables()}
    if str(name) in by_name:
        return by_name[str(name)]
    if Path(name).suffix == ".toml":
        return load_table(Path(name))
    raise UsageError(
        f"{name}: is neither a shipped table ({', '.join(by_name)}) nor a .toml "
        f"file.{nearest(str(name), by_name)}"
    )


@verb(MappingShow)
def describe(options: MappingShow) -> Description:
    """One layout of a table, by default the first MindSpore one."""
    table = find_table(options.name)
    first = next(iter(table.layouts.values()))
    chosen = first
    if options.layout is not None:
        chosen = table.layout(options.layout)
    elif table.names_of("mindspore"):
        chosen = table.first_layout("mindspore")
    rows = [(p, _operation(p, first), _cut(p, chosen)) for p in chosen.patterns]
    for copy in chosen.copies:
        rows.append((copy, f"a copy of {chosen.holding(copy.tensors[0]).template}", ""))
    return Description(
        table=table.name,
        layout=chosen.name,
        family=chosen.family,
        against=first.name,
        axes={axis: expression.text for axis, expression in table.axes.items()},
        rows=[
            Row(pattern.template, pattern.axes_text, list(pattern.tensors), operation, cut)
            for pattern, operation, cut in rows
        ],
    )


@verb(MappingCheck)
def check_table(options: MappingCheck) -> Checked:
    """Loads a table, which checks every rule, and counts what a model of a config.json has in each
    of its layouts.

    Raises `TableError` with the row and the reason, `ConfigError` where the config says too little.
    """
    table = find_table(options.file)
    counts = []
    if options.config is not None:
        content, where = read_model_config(options.config)
        table = table_for(table, content, where)
        counts = [count(table, layout, content, where) for layout in table.layouts.values()]
    return Checked(table.name, table.source, list(table.layouts), counts)


def count(table: Table, layout: Layout, config: Config, where: str) -> Count:
    """A model's stored tensors and parameters in a layout. Raises `UsageError` where a length isn't
    given, and `ConfigError`."""
    lengths = lengths_of(table, config, where)
    present = table.present(layout, config, lengths)
    used = {
        axis for pattern in present for tensor in pattern.tensors for axis in table.tensors[tensor]
    }
    used.update(axis for pattern in present for axis in pattern.offsets.values())
    if unknown := [axis for axis in table.axes if axis in used and axis not in lengths]:
        raise UsageError(
            f"{where}: doesn't give the length of axis {unknown[0]} "
            f"({table.axes[unknown[0]].text})."
        )
    tensors = parameters = 0
    for pattern in present:
        number = sum(1 for _ in name_pieces(pattern, lengths))
        tensors += number
        parameters += number * math.prod(pattern.shape(lambda _, axis: lengths[axis]))
    return Count(layout.name, tensors, parameters)


def table_schema() -> str:
    """The JSON schema of tables, for editors."""
    from ckptforge.tables import table_schema as written  # pydantic is slow to import

    return json.dumps(written.table_schema(), indent=2)


def _operation(pattern: Pattern, first: Layout) -> str:
    """In words, what makes a stored tensor of those of the first layout."""
    origins = list(dict.fromkeys(first.holding(tensor) for tensor in pattern.tensors))
    steps = []
    for tensor in pattern.tensors:
        origin = first.holding(tensor)
        moved = [axis for axis in origin.name_axes if axis in pattern.factors(tensor)]
        split = [axis for axis in pattern.name_axes if axis in origin.factors(tensor)]
        before = [axis for axis in origin.factors(tensor) if axis not in split]
        after = [axis for axis in pattern.factors(tensor) if axis not in moved]
        if moved:
            steps.append(f"stack {' '.join(moved)}")
        if split:
            steps.append(f"unstack {' '.join(split)}")
        if before != after:
            steps.append("transpose")
    same = [(one.tensors, one.axes) for one in origins] == [(pattern.tensors, pattern.axes)]
    if len(pattern.tensors) > 1 and not same:
        steps.append("concatenate")
    if len(pattern.tensors) == 1 and len(origins[0].tensors) > 1:
        steps.append("split")
    if pattern.reshaped:
        steps.append("reshape")
    return ", ".join(dict.fromkeys(steps)) or "as it is"


def _cut(pattern: Pattern, layout: Layout) -> str:
    if layout.sharding is None:
        return ""
    row = layout.sharding.get(pattern.tensors[0], Sharding())
    if layout.family in BY_AXES:
        return ", ".join(f"{cut.axis} by {cut.dimension}" for cut in row.cuts) or "whole"
    cuts = stored_cuts(pattern, layout.sharding)
    where = {i: " where it divides" if cut.optional else "" for i, cut in cuts.items()}
    parts = [f"axis {i} by {cut.dimension}{where[i]}" for i, cut in sorted(cuts.items())]
    if sharded := stored_fsdp(pattern, [row]):
        parts.append(f"axis {sharded} by fsdp")
    return ", ".join(parts or ["whole"]) + (f", whole if {row.whole_if}" if row.whole_if else "")
