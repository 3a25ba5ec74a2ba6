"""Recipes as files: TOML, the bounds within which it is read, and messages that name the row."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ckptforge.errors import UsageError
from ckptforge.foreign.files import read_small

if TYPE_CHECKING:
    from ckptforge.surgery.average_schema import AverageRecipe
    from ckptforge.surgery.edit_schema import EditRecipe
    from ckptforge.validation import Written

    M = TypeVar("M", bound=Written)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 1024 * 1024  # lists of tokens and of experts may be long


def read_average_recipe(path: Path) -> AverageRecipe:
    """A recipe for `average`. Raises `InputNotFoundError` and `UsageError`, naming the row."""
    from ckptforge.surgery.average_schema import AverageRecipe

    return _validated(AverageRecipe, path)


def read_edit_recipe(path: Path) -> EditRecipe:
    """A recipe for `edit`. Raises `InputNotFoundError` and `UsageError`, naming the row."""
    from ckptforge.surgery.edit_schema import EditRecipe

    return _validated(EditRecipe, path)


def expansion(given: dict[str, Any], where: str) -> dict[str, Any]:
    """What `expand` is to do, checked as in a recipe. Raises `UsageError`, beginning with
    `where`."""
    from ckptforge.surgery.edit_schema import Expand
    from ckptforge.validation import validate

    try:
        return validate(Expand, given, lambda place: _spell(place) if place else "it").model_dump()
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def schema(verb: str) -> dict[str, Any]:
    """The JSON schema of the recipes of `edit` or `average`, for editors. Raises `UsageError` for
    another verb."""
    from ckptforge.surgery.average_schema import AverageRecipe
    from ckptforge.surgery.edit_schema import EditRecipe

    models: dict[str, type[Written]] = {"edit": EditRecipe, "average": AverageRecipe}
    if verb not in models:
        raise UsageError(f"{verb!r} has no recipes: use {', '.join(models)}.")
    return models[verb].model_json_schema()


def _validated(model: type[M], path: Path) -> M:
    from ckptforge.validation import validate

    try:
        return validate(model, _parsed(path), _spell)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


def _parsed(path: Path) -> dict[str, Any]:
    content = read_small(path, MAX_BYTES, UsageError)
    try:
        found: dict[str, Any] = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: isn't valid TOML: {error}.") from error
    return found


def _spell(place: tuple[str | int, ...]) -> str:
    """A place as people find it: lists count from 1."""
    words = [f"no. {word + 1}" if isinstance(word, int) else word for word in place]
    return ", ".join(words) or "the recipe"
