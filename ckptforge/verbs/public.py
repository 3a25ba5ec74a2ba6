"""What makes a function public: unknown keywords and values of a wrong type are refused before
anything is done, and its signature and docstring show every keyword, those that it shares with
others too."""

from __future__ import annotations

import functools
import inspect
import numbers
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature
from pathlib import Path
from types import UnionType
from typing import (
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from ckptforge.errors import UsageError, shown
from ckptforge.spelling import option
from ckptforge.verbs.options import DEFAULTS, MEANINGS

F = TypeVar("F", bound=Callable[..., Any])


class _Unpack:
    """Stands for typing.Unpack, which Python 3.10 lacks: `Unpack[Options]` is `Options` here."""

    def __class_getitem__(cls, item: Any) -> Any:
        return item


def public(function: F) -> F:
    """Makes a function check its arguments, and show them in its signature and docstring.

    The function then raises `TypeError` for a keyword that it doesn't have, with the nearest one,
    and `UsageError` for a value of a wrong type.
    """
    signature = _signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        check_arguments(function.__name__, signature, args, kwargs)
        return function(*args, **kwargs)

    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__doc__ = _documented(inspect.cleandoc(function.__doc__ or ""), signature)
    return cast(F, call)


def check_call(function: Callable[..., Any], *args: Any, **keywords: Any) -> None:
    """Raises what a call of a public function would raise for its arguments: `TypeError` and
    `UsageError`."""
    signature = inspect.signature(function)
    check_arguments(function.__name__, signature, args, keywords)
    signature.bind(*args, **keywords)


def check_arguments(
    name: str, signature: Signature, args: Sequence[Any], keywords: Mapping[str, Any]
) -> None:
    """Raises `TypeError` for an unknown keyword, `UsageError` for a value that isn't what the
    signature says."""
    known = signature.parameters
    if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in known.values()):
        for keyword in keywords:
            if keyword not in known:
                named = [one.name for one in known.values() if one.kind is Parameter.KEYWORD_ONLY]
                raise TypeError(f"{name}() has no keyword {keyword!r}; {_nearest(keyword, named)}")
    for keyword, value in [*zip(known, args), *keywords.items()]:  # noqa: B905 (too many are refused by the call)
        if keyword in known and not _fits(value, known[keyword].annotation):
            expected = _described(known[keyword].annotation)
            raise UsageError(f"{option(keyword)} is {shown(value)}, expected {expected}.")


def _nearest(keyword: str, known: list[str]) -> str:
    from difflib import get_close_matches

    if found := get_close_matches(keyword, known, 1):
        return f"did you mean {found[0]!r}?"
    return f"it has {', '.join(known)}"


def _signature(function: Callable[..., Any]) -> Signature:
    """The signature with types instead of their names, and with the keys of a TypedDict in place of
    `**options`."""
    hints = get_type_hints(function, localns={"Unpack": _Unpack})
    signature = inspect.signature(function)
    found: list[Parameter] = []
    for parameter in signature.parameters.values():
        hint = hints.get(parameter.name, Any)
        if parameter.kind is Parameter.VAR_KEYWORD and is_typeddict(hint):
            for name, kind in get_type_hints(hint).items():
                default = DEFAULTS.get(name, False if kind is bool else None)
                found.append(
                    Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)
                )
        else:
            found.append(parameter.replace(annotation=hint))
    return signature.replace(parameters=found, return_annotation=hints.get("return", Any))


def _documented(text: str, signature: Signature) -> str:
    """A docstring whose section "Arguments:" has an entry for every parameter: its own, else the
    shared meaning."""
    before, _, after = text.partition("Arguments:\n")
    own, _, rest = after.partition("\n\n")
    meanings = {**MEANINGS, **dict(re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", own, re.M))}
    lines = []
    for name, parameter in signature.parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            continue
        entry = f"{name}: {' '.join(meanings.get(name, '').split())}"
        lines.append(textwrap.fill(entry, 100, initial_indent="    ", subsequent_indent=" " * 8))
    return "\n".join(
        [before.rstrip(), "", "Arguments:", *lines, *(["", rest.strip()] if rest.strip() else [])]
    )


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(hint))
    if origin is not None and issubclass(origin, Sequence):
        items = list(value) if _is_series(value) else None
        return items is not None and all(
            _fits(item, one) for one in get_args(hint) for item in items
        )
    if hint is bool:
        return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # numpy's
    if hint is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if hint is Path:
        return isinstance(value, os.PathLike)
    if hint in (str, type(None)):
        return isinstance(value, hint)
    return origin is not Callable or callable(value)


def _is_series(value: Any) -> bool:
    return (
        not isinstance(value, (str, bytes, Mapping))
        and hasattr(value, "__len__")
        and hasattr(value, "__getitem__")
    )


_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
    Path: "a path",
    type(None): "None",
}


def _described(hint: Any) -> str:
    """A type in words."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        kinds = list(get_args(hint))
        if Path in kinds and str in kinds:
            kinds.remove(str)
        return " or ".join(
            _described(kind) for kind in sorted(kinds, key=lambda kind: kind is type(None))
        )
    if origin is Literal:
        return ", ".join(map(repr, get_args(hint)))
    if origin is Callable:
        return "a function"
    if origin is not None:
        return "a list of " + " or ".join(
            _described(one).removeprefix("a ") + "s" for one in get_args(hint)
        )
    return _WORDS.get(hint, str(hint))
