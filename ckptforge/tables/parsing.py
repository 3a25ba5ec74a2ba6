"""A mapping table from its text, with every rule that a table must keep."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ckptforge.errors import TableError
from ckptforge.foreign.files import read_small
from ckptforge.tables.constants import make_constants
from ckptforge.tables.layouts import make_layouts
from ckptforge.tables.logical import check_kept_together, make_logical
from ckptforge.tables.lora import make_lora
from ckptforge.tables.pipeline import make_pipeline
from ckptforge.tables.rows import at
from ckptforge.tables.table import OtherNames, Table
from ckptforge.tables.table_file import MAX_BYTES, TableFile, read_table_file


def load_table(path: Path) -> Table:
    """Loads and checks a user's table. Raises `InputNotFoundError` and `TableError`."""
    return parse_table(read_small(path, MAX_BYTES, TableError), str(path))


def parse_table(content: bytes, source: str) -> Table:
    """Checks a table's text. Raises `TableError` with the row and the reason."""
    try:
        return make_table(read_table_file(content), content, source)
    except TableError as error:
        raise TableError(f"{source}: {error}") from error


def make_table(file: TableFile, content: bytes, source: str) -> Table:
    """The table in a file of the right shape. Raises `TableError` with row and rule."""
    logical = make_logical(file)
    layouts = make_layouts(file, logical)
    with at("keep_dtype"):
        check_kept_together(logical.keep_dtype, layouts.values())
    return Table(
        **{name: getattr(logical, name) for name in logical.__struct_fields__},
        name=file.name,
        source=source,
        text=content,
        model_types=tuple(file.model_type),
        aliases=tuple(file.aliases),
        example=file.example,
        demo=file.demo,
        layouts=layouts,
        pipeline=make_pipeline(file.pipeline, logical, layouts),
        lora=make_lora(file, layouts),
        constants=make_constants(file),
        other_names=OtherNames(
            ignored=msgspec.structs.asdict(file.ignored),
            refused=msgspec.structs.asdict(file.refused),
        ),
    )
