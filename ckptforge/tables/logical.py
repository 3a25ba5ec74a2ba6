"""[axes], [tensors], [optional] and `keep_dtype`: the logical tensors of a model."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from ckptforge.tables.model_config import Condition, Expression
from ckptforge.tables.passed import ANY
from ckptforge.tables.rows import at, check_known
from ckptforge.tables.selection import Selection, is_selection, parse_selection
from ckptforge.tables.table import Layout, Logical

if TYPE_CHECKING:
    from ckptforge.tables.table_file import TableFile


def make_logical(file: TableFile) -> Logical:
    """Raises `TableError` with the row and the rule that it breaks."""
    axes: dict[str, Expression | Selection] = {}
    for axis, text in file.axes.items():
        with at("axes", axis):
            _check_identifier(axis)
            axes[axis] = parse_selection(text, axes) if is_selection(text) else Expression(text)
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
    return Logical(
        axes=axes,
        tensors=tensors,
        passed=passed,
        optional=optional,
        keep_dtype=frozenset(file.keep_dtype),
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


def check_kept_together(keep_dtype: frozenset[str], layouts: Iterable[Layout]) -> None:
    """Raises `ValueError` where tensors that keep their dtype are stored with others."""
    for layout in layouts:
        for pattern in layout.patterns:
            if 0 < len(keep_dtype.intersection(pattern.tensors)) < len(pattern.tensors):
                raise ValueError(
                    f"layout {layout.name} stores {', '.join(pattern.tensors)} in one, "
                    f"{pattern.template!r}; name all of them or none"
                )
