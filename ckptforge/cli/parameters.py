"""The parameters of a command, made from its records of options: names, types, help."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from ckptforge.cli.completion import completing
from ckptforge.spelling import dashes
from ckptforge.verbs.options.option import Option, Words
from ckptforge.verbs.options.record import Options, options_of, types_of
from ckptforge.wording import nearest

_NONE = type(None)


class Place(click.Path):
    """`click.Path` that refuses an empty word, which `Path` would take for this directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, or an error."""
        if value == "":
            self.fail("it is empty; name a file or directory, or . for this one.", param, ctx)
        return super().convert(value, param, ctx)


class Choice(click.Choice[str]):
    """`click.Choice` that suggests the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The word, or an error with the nearest."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message}{nearest(str(value), self.choices)}", param, ctx)


class Word(Choice):
    """One of the usual words, or another that is asked for when it is given."""

    def __init__(self, words: Words) -> None:
        super().__init__(words.usual)
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The word, among all that there are if it isn't a usual one."""
        if value not in self.words.usual:
            self.choices = tuple(self.words.all())
        return super().convert(value, param, ctx)


class Numbers(click.ParamType[Any]):
    """Whole numbers joined by commas; where one may stand alone, it is given as itself."""

    name = "numbers"

    def __init__(self, one: bool) -> None:
        self.one = one

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | list[int]:
        """The numbers, or one alone."""
        try:
            found = [int(word) for word in value.split(",")]
        except ValueError as error:
            name = param.opts[0] if param is not None else ""
            raise click.UsageError(
                f"{name} {value!r}: expected whole numbers, joined by commas.", ctx
            ) from error
        return found[0] if self.one and len(found) == 1 else found


def parameters(record: type[Options]) -> list[click.Parameter]:
    """The arguments and options that a record has on the command line."""
    kinds = types_of(record)
    return [
        _option(name, one, kinds[name], record)
        if one.kw_only
        else _argument(name, one, kinds[name])
        for name, one in options_of(record).items()
        if not one.hidden
    ]


def hidden(names: Sequence[str]) -> list[click.Parameter]:
    """Options of a text each that no help lists."""
    return [
        click.Option([dashes(name), name], metavar="VALUE", hidden=True, expose_value=True)
        for name in names
    ]


def _argument(name: str, one: Option, kind: Any) -> click.Argument:
    many = get_origin(kind) is not None and issubclass(get_origin(kind), Sequence)
    metavar = one.metavar or name.upper()
    return click.Argument(
        [name],
        type=_type(one, kind),
        required=one.required,
        nargs=-1 if many else 1,
        metavar=metavar if one.required or many else f"[{metavar}]",
        shell_complete=completing(one),
    )


def _option(name: str, one: Option, kind: Any, record: type[Options]) -> click.Option:
    settings: dict[str, Any] = {"required": one.required}
    if kind is bool:
        settings["is_flag"] = True
    else:
        settings["type"] = _type(one, kind)
        settings["metavar"] = one.choices or one.metavar or _metavar(settings["type"])
        settings["multiple"] = kind == Sequence[str]
        settings["shell_complete"] = completing(one)
        if isinstance(one.default, (str, int)):
            settings |= {"default": one.default, "show_default": isinstance(one.default, str)}
    return click.Option([dashes(name), *one.aliases, name], help=help_of(one, record), **settings)


def _type(one: Option, kind: Any) -> Any:
    """What click is to make of a word for a type."""
    kinds = {kind} if get_origin(kind) in (Literal, Sequence) else set(get_args(kind) or [kind])
    kinds.discard(_NONE)
    if literals := [each for each in kinds if get_origin(each) is Literal]:
        return Choice(get_args(literals[0]))
    if Path in kinds:
        return Place(path_type=Path, readable=False)  # what can be read is for the verbs to say
    if Sequence[int] in kinds:
        return Numbers(one=int in kinds)
    if one.words is not None:
        return Word(one.words)
    if one.bounds is not None:
        return click.IntRange(*one.bounds)
    return next((each for each in (bool, float, int) if kinds == {each}), str)


def _metavar(kind: Any) -> str | None:
    if kind is bool:
        return "True|False"
    return "N" if kind is int or isinstance(kind, click.IntRange) else None


def help_of(one: Option, record: type[Options]) -> str:
    """What an option means, as a sentence of a help text: others in it are spelled as here."""
    options = options_of(record)

    def spelled(found: re.Match[str]) -> str:
        other = options.get(found[1])
        if other is None:
            return found[0]
        return dashes(found[1]) if other.kw_only else other.metavar or found[1].upper()

    text, unset = (re.sub(r"`(\w+)`", spelled, part) for part in (one.meaning, one.unset))
    sentence = f"{text[:1].upper()}{text[1:]}." if text else ""
    return f"{sentence} [default: {unset}]".strip() if unset else sentence
