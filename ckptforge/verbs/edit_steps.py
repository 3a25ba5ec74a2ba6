"""The edits that a call and its recipe ask for, in order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptforge.errors import UsageError, shown
from ckptforge.spelling import option
from ckptforge.surgery.edits import Step, edit_named
from ckptforge.surgery.recipes import expansion, read_edit_recipe
from ckptforge.verbs.options import Edit
from ckptforge.verbs.options.dtypes import parse_target
from ckptforge.verbs.options.record import options_of
from ckptforge.wording import nearest

if TYPE_CHECKING:
    from ckptforge.surgery.edit_schema import EditRow

_OWN = ("take", "merge", "pad", "expand", "tie", "untie", "drop", "keep", "rename", "set_dtype")


def steps_of(options: Edit) -> list[Step]:
    """The recipe's, then those of the call, in the order in which they were given; of one kind,
    such as what is kept, neighbours are one step. Raises `UsageError`, naming the row or the
    option."""
    found = [] if options.recipe is None else list(_of_recipe(options.recipe))
    given = [_pair(one) for one in options.edits]
    for name, value in vars(options).items():
        if name in _OWN and value:
            given += [(name, "")] if value is True else [(name, text) for text in value]
    if options.fill != options_of(Edit)["fill"].default and not any(n == "pad" for n, _ in given):
        hint = "" if options.recipe is None else "; a recipe's rows have a fill of their own"
        raise UsageError(
            f"{option('fill', options.fill)} means nothing without {option('pad')}{hint}: give "
            "both, or neither."
        )
    for name, group in groupby(given, lambda pair: pair[0]):
        found += _of_texts(name, [text for _, text in group], options.fill)
    return found


def _pair(given: Sequence[str]) -> tuple[str, str]:
    if len(given) != 2 or given[0] not in _OWN:
        hint = nearest(given[0], _OWN) if given else ""
        raise UsageError(
            f"{option('edits')} holds {shown(list(given))}, expected pairs of an edit "
            f"({', '.join(_OWN)}) and its value.{hint}"
        )
    return given[0], given[1]


def _of_texts(name: str, texts: Sequence[str], fill: str) -> Iterator[Step]:
    """The steps of options of one kind."""
    if name in ("take", "set_dtype", "pad", "merge"):
        for key, text in _pairs(name, texts):
            if name == "set_dtype":
                yield _dtype_step(key, text)
            elif name == "merge":
                yield Step("merge", (key, _groups(text)))
            else:
                yield Step(name, (key, text, fill) if name == "pad" else (key, text))
    elif name == "rename":
        yield Step("rename", dict(_pairs("rename", texts)))
    elif name in ("drop", "keep"):
        yield Step(name, tuple(texts))
    elif name == "expand":
        yield from (Step("expand", _expansion(text)) for text in texts)
    else:
        yield Step(name, None)


def _expansion(text: str) -> dict[str, Any]:
    """`TABLE experts=8 …` as the recipe has it."""
    to, *more = text.split() or [""]
    where = option("expand", text)
    if not to or "=" in to or not all("=" in word for word in more):
        raise UsageError(f"{where}: expected a mapping, and then such as experts=8 router=zero.")
    given = dict(word.split("=", 1) for word in more)
    numbers = {key: int(word) if word.isdecimal() else word for key, word in given.items()}
    return expansion({"to": to, **numbers}, where)


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
        where = f"{path}: edit, no. {i}"
        given = [name for name in _OWN if getattr(row, name)]
        others: Mapping[str, Any] = row.__pydantic_extra__ or {}
        if len(given) + len(others) != 1:
            raise UsageError(
                f"{where} has {' and '.join([*given, *others]) or 'nothing'}, "
                f"expected one of {', '.join(_OWN)}."
            )
        try:
            for name, argument in others.items():
                yield Step(edit_named(name).NAME, argument, where)
            for name in given:
                yield from (step._replace(where=where) for step in _of_row(row, name))
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error


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
