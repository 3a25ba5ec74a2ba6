"""The JSON schema of a verb's options, for forms, editors and other programs that call one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from ckptforge.verbs.options.option import Option
from ckptforge.verbs.options.record import Options, options_of, types_of, verb_of

_NAMES = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    Path: "string",
    type(None): "null",
}


def schema(record: type[Options]) -> dict[str, Any]:
    """The JSON schema of the options of a verb: all but functions and what only a program gives.

    Args:
        record: the verb's record, such as `ToMs`.

    Returns:
        An object schema (2020-12) with a description, type and default for every option.

    Example:
        >>> schema(ToMs)["properties"]["layout"]["type"]
        ['string', 'null']
    """
    options = {name: one for name, one in options_of(record).items() if not one.hidden}
    kinds = types_of(record)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": verb_of(record),
        "description": record.__doc__,
        "type": "object",
        "properties": {name: _property(one, kinds[name]) for name, one in options.items()},
        "required": [name for name, one in options.items() if one.required],
        "additionalProperties": False,
    }


def _property(one: Option, kind: Any) -> dict[str, Any]:
    found = {"description": one.text, **_kind(kind)}
    if one.words is not None:
        found = {"description": one.text, "enum": [*one.words.all(), None]}
    if one.bounds is not None:
        found["minimum"], found["maximum"] = one.bounds
    if not one.required:
        found["default"] = list(one.default) if isinstance(one.default, tuple) else one.default
    return found


def _kind(kind: Any) -> dict[str, Any]:
    origin = get_origin(kind)
    if origin is Literal:
        return {"enum": list(get_args(kind))}
    if origin is Callable:
        raise TypeError("a function has no JSON schema; its option is hidden")
    if origin is not None and origin is not Union and issubclass(origin, Sequence):
        return {"type": "array", "items": _kind(get_args(kind)[0])}
    if kind in _NAMES:
        return {"type": _NAMES[kind]}
    kinds = [_kind(each) for each in get_args(kind)]
    if any("enum" in each for each in kinds):
        return {"enum": [*kinds[0]["enum"], None]}
    if all(set(each) == {"type"} for each in kinds):
        names = list(dict.fromkeys(each["type"] for each in kinds))
        return {"type": names if len(names) > 1 else names[0]}
    return {"anyOf": kinds}
