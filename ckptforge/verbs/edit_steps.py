"""The edits that a call and its recipe ask for, in order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptforge.errors import UsageError
from ckptforge.spelling import option
from ckptforge.surgery.edits import Step, edit_named
from ckptforge.surgery.recipes import read_edit_recipe
from ckptforge.verbs.options import Edit
from ckptforge.verbs.options.dtypes import parse_target

if TYPE_CHECKING:
    from ckptforge.surgery.edit_schema import EditRow

_OWN = ("take", "merge", "pad", "expand", "tie", "untie", "drop", "keep", "rename", "set_dtype")


def steps_of(options: Edit) -> list[Step]:
    """The recipe's, then those of the call. Raises `UsageError`, naming the row or the option."""
    found = [] if options.recipe is None else list(_of_recipe(options.recipe))
    found += [Step("take", pair) for pair in _pairs("take", options.take)]
    found += [Step("merge", (axis, _groups(text))) for axis, text in _pairs("merge", options.merge)]
    found += [Step("pad", (*pair, options.fill)) for pair in _pairs("pad", options.pad)]
    found += [Step(name, None) for name in ("tie", "untie") if getattr(options, name)]
    found += [Step("drop", tuple(options.drop))] if options.drop else []
    found += [Step("keep", tuple(options.keep))] if options.keep else []
    found += [Step("rename", dict(_pairs("rename", options.rename)))] if options.rename else []
    found += [_dtype_step(*pair) for pair in _pairs("set_dtype", options.set_dtype)]
    return found


def _dtype_step(what: str, dtype: str) -> Step:
    return Step("set_dtype", (what, parse_target(dtype, "set_dtype")))


def _pairs(name: str, given: Sequence[str]) -> Iterator[tuple[str, str]]:
    for text in given:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            example = {"rename": "OLD=NEW", "set_dtype": "router=fp32"}.get(name, "e=0,2,5")
            raise UsageError(f"{option(name, text)}: expected two things, such as {example}.")
        yield key.strip(), value.strip()


def _groups(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, (list, dict)) for one in found):
        raise UsageError(f"{option('merge', text)}: expected groups such as e=[[0,3],[1,2]].")
    return found


def _of_recipe(path: Path) -> Iterator[Step]:
    recipe = read_edit_recipe(path)
    for i, row in enumerate(recipe.edit, 1):
        given = [name for name in _OWN if getattr(row, name)]
        others: Mapping[str, Any] = row.__pydantic_extra__ or {}
        if len(given) + len(others) != 1:
            raise UsageError(
                f"{path}: edit, no. {i} has {' and '.join([*given, *others]) or 'nothing'}, "
                f"expected one of {', '.join(_OWN)}."
            )
        for name, argument in others.items():
            try:
                yield Step(edit_named(name).NAME, argument)
            except UsageError as error:
                raise UsageError(f"{path}: edit, no. {i}: {error}") from error
        for name in given:
            yield from _of_row(row, name)


def _of_row(row: EditRow, name: str) -> Iterator[Step]:
    value = getattr(row, name)
    if name == "set_dtype":
        yield from (_dtype_step(*pair) for pair in value.items())
    elif name in ("take", "merge"):
        yield from (Step(name, pair) for pair in value.items())
    elif name == "pad":
        yield from (Step(name, (axis, size, row.fill)) for axis, size in value.items())
    elif name == "expand":
        yield Step(name, value.model_dump())
    elif name in ("drop", "keep"):
        yield Step(name, tuple(value))
    else:
        yield Step(name, value if name == "rename" else None)
