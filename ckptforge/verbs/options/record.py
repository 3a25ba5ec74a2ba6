"""Records of options: what a verb is called with, checked when it is made against its types."""

from __future__ import annotations

import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from ckptforge.errors import UsageError, shown
from ckptforge.spelling import flag as switch
from ckptforge.spelling import option as spelled
from ckptforge.storage.address import given_path
from ckptforge.verbs.options.option import Option, required

if TYPE_CHECKING:
    from typing_extensions import Self, dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Any:
        """Does nothing: it is for type checkers, and Python 3.10 lacks it."""
        return lambda record: record


_OPTIONS: dict[type[Options], Mapping[str, Option]] = {}
_TYPES: dict[type[Options], Mapping[str, Any]] = {}


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(required,))
class Options:
    """The options of a verb, which can't be changed.

    Raises `TypeError`, with the nearest name, for one that it doesn't have and for one that is
    missing, and `UsageError` for a value of a wrong type and for options that mean nothing without
    another or contradict one. Paths are held as `Path`s.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        vars(self).update(_bound(type(self), arguments, keywords))
        _refuse_together(type(self), vars(self))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} can't be changed; see its replace().")

    def __repr__(self) -> str:
        options = options_of(type(self))
        values = vars(self).items()
        given = [f"{name}={value!r}" for name, value in values if value != options[name].default]
        return f"{type(self).__name__}({', '.join(given)})"

    def replace(self, **changes: Any) -> Self:
        """The same with other values, which alone are checked."""
        _refuse_unknown(type(self), changes)
        made = copy(self)
        vars(made).update(_checked(type(self), changes))
        return made


def options_of(record: type[Options]) -> Mapping[str, Option]:
    """The options of a record by name: first what it is called with by position, then its own, then
    those of its bases; one that it says anew stands where its base has it."""
    if record not in _OPTIONS:
        found: dict[str, Option] = {}
        for cls in record.__mro__:
            own = {name: one for name, one in vars(cls).items() if isinstance(one, Option)}
            found |= {name: found.pop(name, one) for name, one in own.items()}
        _OPTIONS[record] = dict(sorted(found.items(), key=lambda item: item[1].kw_only))
    return _OPTIONS[record]


def types_of(record: type[Options]) -> Mapping[str, Any]:
    """The types of a record's options by name, of a path what may be given for it."""
    if record not in _TYPES:
        hints = get_type_hints(record)
        _TYPES[record] = {name: hints[name] for name in options_of(record)}
    return _TYPES[record]


def verb_of(record: type[Options]) -> str:
    """The name of the function that a record is for: `to_ms` for `ToMs`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", record.__name__).lower()


def _bound(
    record: type[Options], arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> dict[str, Any]:
    """The value of every option, those that are given first, in their order. Raises `TypeError` and
    `UsageError`."""
    _refuse_unknown(record, keywords)
    options = options_of(record)
    given = {**_by_position(record, arguments, keywords), **keywords}
    if missing := [name for name, one in options.items() if one.required and name not in given]:
        raise TypeError(f"{verb_of(record)}() is missing a required argument: {missing[0]!r}")
    checked = _checked(record, given)
    return checked | {name: one.default for name, one in options.items() if name not in checked}


def _checked(record: type[Options], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they are held. Raises `UsageError`."""
    options, kinds = options_of(record), types_of(record)
    values = {}
    for name, value in given.items():
        one = options[name]
        if isinstance(value, str) and kinds[name] == Sequence[str]:
            value = (value,)
        if not fits(value, kinds[name]):
            expected = described(kinds[name])
            raise UsageError(f"{spelled(name)} is {shown(value)}, expected {expected}.")
        if one.words is not None and value not in (None, *one.words.usual):
            words = one.words.all()
            if value not in words:
                expected = f"{', '.join(map(repr, words))} or None"
                raise UsageError(f"{spelled(name)} is {shown(value)}, expected {expected}.")
        if one.bounds is not None and not one.bounds[0] <= value <= one.bounds[1]:
            least, most = one.bounds
            raise UsageError(f"{spelled(name, value)}: expected {least} to {most:,}.")
        is_path = value is not None and Path in get_args(kinds[name])
        values[name] = given_path(os.fspath(value)) if is_path else value
    return values


def _refuse_together(record: type[Options], values: Mapping[str, Any]) -> None:
    """Raises `UsageError` for an option without what it needs, or with what it clashes with."""
    options = options_of(record)
    given = {name for name, one in options.items() if _is_given(values[name], one)}
    for name, one in options.items():
        if name not in given:
            continue
        needed = [other for other in one.needs if other in options]
        if needed and given.isdisjoint(needed):
            way = "give both, or neither" if len(needed) == 1 else "give one of these, or omit it"
            raise UsageError(
                f"{_switched(name, one)} means nothing without "
                f"{' or '.join(_switched(other, options[other]) for other in needed)}: {way}."
            )
        for other, does in one.clashes.items():
            if other in given:
                raise UsageError(
                    f"{_switched(other, options[other])} {does}, so {_switched(name, one)} can't "
                    "be given."
                )


def _is_given(value: Any, one: Option) -> bool:
    """Whether an option has another value than by default, which may be numbers of numpy's."""
    return value is not one.default and (one.default is None or bool(value != one.default))


def _switched(name: str, one: Option) -> str:
    if not one.kw_only:
        return one.metavar or name
    return switch(name) if one.default is False else spelled(name)


def _by_position(
    record: type[Options], arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> dict[str, Any]:
    """The values that are given by position. Raises `TypeError` for too many."""
    verb, options = verb_of(record), options_of(record)
    names = [name for name, one in options.items() if not one.kw_only]
    if len(arguments) > len(names):
        raise TypeError(
            f"{verb}() takes {len(names)} positional arguments, but {len(arguments)} were given"
        )
    if twice := [name for name in names[: len(arguments)] if name in keywords]:
        raise TypeError(f"{verb}() got two values for {twice[0]!r}")
    return dict(zip(names, arguments, strict=False))


def _refuse_unknown(record: type[Options], keywords: Iterable[str]) -> None:
    """Raises `TypeError`, with the nearest name, for what isn't an option."""
    options = options_of(record)
    for keyword in keywords:
        if keyword not in options:
            from difflib import get_close_matches

            known = [name for name, one in options.items() if one.kw_only]
            near = get_close_matches(keyword, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise TypeError(f"{verb_of(record)}() has no keyword {keyword!r}; {hint}")


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
