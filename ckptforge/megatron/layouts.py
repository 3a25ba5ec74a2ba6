"""Which layout of which table tensors of Megatron's names are in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from ckptforge.errors import CkptforgeError, LayoutError
from ckptforge.reading.known import Known
from ckptforge.tables.names import recognise_names
from ckptforge.tables.table import Layout, Table
from ckptforge.tables.table_choice import choose_table
from ckptforge.values import Value

FAMILY = "megatron"


def layout_of(directory: Path, values: Mapping[str, Value], known: Known) -> tuple[Table, Layout]:
    """The table and the layout by the names of tensors: shapes are those of parts. Raises the
    errors of choosing a table, and `LayoutError` where none has them."""
    shapes = {name: value.shape for name, value in values.items()}
    try:
        table = choose_table(known.tables, shapes, replace(known.hints, layout=None))
    except CkptforgeError as error:
        raise type(error)(
            f"{directory}: {error} The files of ranks are put together only where a mapping says "
            "how they are cut."
        ) from error
    hints = known.hints
    if hints.layout is not None:
        return table, table.layout(hints.layout)
    names = table.names_of(FAMILY)
    if hints.recorded_layout in names:
        return table, table.layouts[hints.recorded_layout]
    if not names:
        raise LayoutError(f"{directory}: the mapping {table.name} has no layout of Megatron's.")

    def strangeness(name: str) -> tuple[int, int]:
        found, unknown = recognise_names(table.layouts[name], values)
        return len(unknown), sum(p not in found for p in table.layouts[name].patterns)

    return table, table.layouts[min(names, key=strangeness)]
