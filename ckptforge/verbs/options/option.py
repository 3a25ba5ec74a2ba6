"""One option of a verb, for Python's signature, the command line and the JSON schema."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

PathLike = str | os.PathLike[str]
Names = Literal[
    "", "layout", "mindspore", "huggingface", "model", "dtype", "code"
]  # "": of nothing known
Progress = Callable[[int, int], None]
Say = Callable[[str], object]

if TYPE_CHECKING:
    Given = TypeVar("Given", contravariant=True)
    Kept = TypeVar("Kept", covariant=True)

    class _Converted(Generic[Given, Kept]):
        """For type checkers: a field that is given as one type and held as another."""

        def __get__(self, record: object, owner: type) -> Kept: ...
        def __set__(self, record: object, value: Given) -> None: ...

    Place = _Converted[PathLike, Path]
    OptionalPlace = _Converted[PathLike | None, Path | None]
else:
    Place = str | Path
    OptionalPlace = str | Path | None


class _Required:
    """Stands for the default of an option that must be given."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()


class Words(NamedTuple):
    """The words that an option takes: the usual ones, and those of other packages."""

    usual: tuple[str, ...]
    others: Callable[[], Iterable[str]]

    def all(self) -> list[str]:
        """All of them."""
        return list(dict.fromkeys((*self.usual, *self.others())))


class Option(NamedTuple):
    """What is known of an option beside its name and type.

    `meaning` is a sentence without its capital letter and full stop; options in backquotes are
    spelled as the reader writes them. `unset` says what happens where nothing is given, `words`
    which texts may be. The rest is for the command line: `choices` or `metavar` in place of the
    value, `completes` what kind of name it is, `aliases` other spellings, `hidden` that it isn't
    there, `into` the option that gets (name, value) of all such in their order. It means nothing
    without one of those that it `needs`, of those that the verb has, and can't be given with those
    that it `clashes` with, each of which does what stands there.
    """

    meaning: str
    default: Any = REQUIRED
    unset: str = ""
    choices: str = ""
    metavar: str = ""
    completes: Names = ""
    bounds: tuple[int, int] | None = None
    words: Words | None = None
    aliases: tuple[str, ...] = ()
    hidden: bool = False
    into: str = ""
    needs: tuple[str, ...] = ()
    clashes: Mapping[str, str] = MappingProxyType({})
    kw_only: bool = True

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is REQUIRED

    @property
    def text(self) -> str:
        """What it means, as an entry of a docstring."""
        words = [word if word == "…" else f'"{word}"' for word in self.choices.split("|") if word]
        choices = f" ({', '.join(words)})" if words else ""
        return f"{self.meaning}{choices}{f'; by default {self.unset}' if self.unset else ''}."


def required(meaning: str, *, kw_only: bool = True, **facts: Any) -> Any:
    """A field of a record of options that must be given; the keywords are those of `Option`."""
    return Option(meaning, kw_only=kw_only, **facts)


def option(meaning: str, default: Any = None, **facts: Any) -> Any:
    """A field of a record of options with a default; the keywords are those of `Option`."""
    return Option(meaning, default, **facts)


def flag(meaning: str, **facts: Any) -> Any:
    """A switch, off by default; the keywords are those of `Option`."""
    return Option(meaning, False, **facts)
