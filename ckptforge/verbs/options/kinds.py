"""Whether a value is of an option's type, and what types are called."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
    Path: "a path",
    type(None): "None",
}


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, where numbers of numpy are numbers too."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in get_args(kind))
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(kind))
    if origin is not None and issubclass(origin, Sequence):
        if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__getitem__"):
            return False
        sized, of = hasattr(value, "__len__"), get_args(kind)
        return sized and all(fits(item, one) for item in value for one in of)
    if kind is bool:
        return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # numpy's
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind is Path:
        return isinstance(value, os.PathLike)
    if kind in (str, type(None)):
        return isinstance(value, kind)
    return origin is not Callable or callable(value)


def described(kind: Any) -> str:
    """A type in words."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        kinds = list(get_args(kind))
        if Path in kinds and str in kinds:
            kinds.remove(str)
        return " or ".join(
            described(one) for one in sorted(kinds, key=lambda one: one is type(None))
        )
    if origin is Literal:
        return ", ".join(map(repr, get_args(kind)))
    if origin is Callable:
        return "a function"
    if origin is not None:
        return "a list of " + " or ".join(
            described(one).removeprefix("a ") + "s" for one in get_args(kind)
        )
    return _WORDS.get(kind, str(kind))
