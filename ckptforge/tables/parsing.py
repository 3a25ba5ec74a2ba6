"""A mapping table from its text, with every rule that a table must keep; those of [axes],
[tensors], [optional] and `keep_dtype` are here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import msgspec

from ckptforge.errors import TableError
from ckptforge.foreign.files import read_small
from ckptforge.tables.constants import make_constants
from ckptforge.tables.layouts import make_layouts
from ckptforge.tables.lora import make_lora
from ckptforge.tables.model_config import Condition, Expression
from ckptforge.tables.passed import ANY
from ckptforge.tables.pipeline import Pipeline, make_pipeline
from ckptforge.tables.rows import at, check_known
from ckptforge.tables.selection import Selection, is_selection, parse_selection
from ckptforge.tables.table import Layout, Logical, OtherNames, Table, Tower
from ckptforge.tables.table_file import TableFile, TowerSection
from ckptforge.tables.user_table import MAX_BYTES, read_table_file


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
    with at("integers"):
        check_kept_together(frozenset(logical.integers), layouts.values())
    pipeline = make_pipeline(file.pipeline, logical, layouts)
    check_per(logical.axes, pipeline)
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
        pipeline=pipeline,
        lora=make_lora(file, layouts),
        constants=make_constants(file),
        other_names=OtherNames(
            ignored=msgspec.structs.asdict(file.ignored),
            refused=msgspec.structs.asdict(file.refused),
        ),
    )


def make_logical(file: TableFile) -> Logical:
    """Raises `TableError` with the row and the rule that it breaks."""
    axes: dict[str, Expression | Selection] = {}
    for axis, text in file.axes.items():
        with at("axes", axis):
            _check_identifier(axis)
            axes[axis] = _axis(text, axes)
    tensors: dict[str, tuple[str, ...]] = {}
    passed: dict[str, tuple[str, ...]] = {}
    for tensor, text in file.tensors.items():
        with at("tensors", tensor):
            _check_identifier(tensor)
            if text.split()[-1:] == [ANY]:
                passed[tensor] = _axes(text.removesuffix(ANY), axes)
            else:
                tensors[tensor] = _axes(text, axes)
    optional: dict[str, Condition] = {}
    for tensor, text in file.optional.items():
        with at("optional", tensor):
            check_known([tensor], tensors, "[tensors]")
            optional[tensor] = Condition(text)
    with at("keep_dtype"):
        check_known(file.keep_dtype, tensors, "[tensors]")
    for tensor, axis in file.integers.items():
        with at("integers", tensor):
            check_known([tensor], tensors, "[tensors]")
            check_known([axis], axes, "[axes]", "axis")
    towers: dict[str, Tower] = {}
    for name, section in file.tower.items():
        with at("tower", name):
            towers[name] = _tower(section, axes, tensors)
    return Logical(
        axes=axes,
        tensors=tensors,
        passed=passed,
        optional=optional,
        keep_dtype=frozenset(file.keep_dtype),
        integers=file.integers,
        towers=towers,
    )


def _tower(
    section: TowerSection,
    axes: Mapping[str, Expression | Selection],
    tensors: Mapping[str, tuple[str, ...]],
) -> Tower:
    check_known([section.layers], axes, "[axes]", "axis")
    check_known(section.beside, tensors, "[tensors]")
    in_layers = [tensor for tensor, own in tensors.items() if section.layers in own]
    if again := next((tensor for tensor in section.beside if tensor in in_layers), None):
        raise ValueError(f"{again!r} has the axis {section.layers!r}, so it is in layers")
    return Tower(layers=section.layers, tensors=(*in_layers, *section.beside))


def _axis(text: str, known: Mapping[str, Expression | Selection]) -> Expression | Selection:
    if is_selection(text):
        return parse_selection(text, known)
    length, per, of = text.partition(" per ")
    found = Expression(length, of)
    if not per:
        return found
    layers = known.get(of)
    if not isinstance(layers, Expression) or layers.per or layers.may_be_none:
        raise ValueError(f"{of!r} isn't an axis above it whose length config.json says")
    if found.may_be_none or not found.keys:
        raise ValueError(f"{length!r} can't differ between the indexes of {of!r}")
    return found


def check_per(axes: Mapping[str, Expression | Selection], pipeline: Pipeline | None) -> None:
    """Raises `TableError` where lengths differ between the indexes of another axis than that of
    all layers."""
    all_layers = None if pipeline is None else pipeline.layers[0][0]
    for axis, one in axes.items():
        if isinstance(one, Expression) and one.per and one.per != all_layers:
            with at("axes", axis):
                raise ValueError(
                    f"{one.per!r} must be the first axis of [pipeline] layers, which counts all"
                )


def _check_identifier(name: str) -> None:
    if not name.isidentifier():
        raise ValueError("the name must be an identifier")


def _axes(text: str, known: Collection[str]) -> tuple[str, ...]:
    found = tuple(text.split())
    check_known(found, known, "[axes]", "axis")
    if len(set(found)) < len(found):
        raise ValueError(f"an axis stands twice in {text!r}")
    return found


def check_kept_together(alike: frozenset[str], layouts: Iterable[Layout]) -> None:
    """Raises `ValueError` where tensors of another dtype are stored with others."""
    for layout in layouts:
        for pattern in layout.patterns:
            if 0 < len(alike.intersection(pattern.tensors)) < len(pattern.tensors):
                raise ValueError(
                    f"layout {layout.name} stores {', '.join(pattern.tensors)} in one, "
                    f"{pattern.template!r}; name all of them or none"
                )
