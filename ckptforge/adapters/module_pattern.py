"""Keys of PEFT's rank_pattern and alpha_pattern, which match modules by their names.

Convention of the peft library (0.21, peft/utils/other.py, get_pattern_key): the first key, in the
order of the file, for which `re.match(rf"(.*\\.)?({key})$", module)` finds something. Such keys
come from strangers' files, and a regular expression can keep Python's `re` busy for years. They are
matched here without backtracking: by the set of all places in the name that a part of the
expression can reach, kept as bits of one integer.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from ckptforge.errors import FormatError, shown

MAX_KEYS = 4096
MAX_KEY = 500  # characters
MAX_STEPS = 5_000_000  # of all matches together: some seconds
_PLAIN = re.compile(r"\^?(?:[\w.-]|\\\.)+", re.ASCII)
_COUNTS = re.compile(r"\{(\d*)(?:(,)(\d*))?\}")
_CLASS = re.compile(r"\[\^?\]?(?:[^\]\\]|\\.)*\]", re.DOTALL)
_ENDLESS = 1 << 32
_QUANTIFIERS = {"*": (0, _ENDLESS), "+": (1, _ENDLESS), "?": (0, 1)}


class ModulePatterns:
    """One of the two, as `field` of a file `where`: the value of the first key that matches a
    module. `notes` name keys of different values that match one module, once there was such.

    Raises `FormatError` for too many keys, or one that isn't a regular expression, is too long, or
    has what isn't understood.
    """

    def __init__(self, where: str, field: str, values: object) -> None:
        self._what = f"{where}: {field}"
        if not isinstance(values, dict):
            raise FormatError(
                f"{self._what} is {shown(values)}, expected an object of module names."
            )
        if len(values) > MAX_KEYS:
            raise FormatError(
                f"{self._what} has {len(values):,} keys, at most {MAX_KEYS:,} are read."
            )
        self._values: Mapping[str, Any] = values
        self._matchers = [(key, self._matcher(key), value) for key, value in values.items()]
        self.notes: tuple[str, ...] = ()
        self._found: dict[str, Any] = {}
        self._steps = 0

    def value(self, module: str, default: object) -> object:
        """The value for a module of that name, or `default`, as for one without a name. Raises
        `FormatError` where matching takes too many steps."""
        if not module or not self._matchers:
            return default
        if module not in self._found:
            self._found[module] = self._first(module, default)
        return self._found[module]

    def _first(self, module: str, default: object) -> object:
        name = _Name(module, self._spend)
        try:
            matching = [(key, value) for key, matches, value in self._matchers if matches(name)]
        except RecursionError as error:
            raise FormatError(f"{self._what} has a key that is nested too deeply.") from error
        if not matching:
            return default
        key, first = matching[0]
        if other := next((other for other, value in matching if value != first), None):
            self.notes = self.notes or (
                f"{self._what}: {shown(key)} and {shown(other)} both match {module}; as in PEFT "
                "the first in the file counts, and PEFT sorts them when it saves.",
            )
        return first

    def _spend(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise FormatError(
                f"{self._what}: its {len(self._values)} keys take too many steps to be matched "
                "with the names of modules; write them as plain names."
            )

    def _matcher(self, key: str) -> Callable[[_Name], bool]:
        if len(key) > MAX_KEY:
            raise FormatError(
                f"{self._what} has the key {shown(key)}, at most {MAX_KEY} characters are read."
            )
        whole = rf"(.*\.)?({key})$"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compiled = re.compile(whole)
            if _PLAIN.fullmatch(key):
                tail = key.rpartition(".")[2].removeprefix("^")
                return lambda name: (
                    name.text.endswith(tail) and compiled.match(name.text) is not None
                )
            node = _Parser(whole).parse()
        except (re.error, OverflowError) as error:
            raise FormatError(
                f"{self._what} has the key {shown(key)}, which isn't a regular expression: {error}."
            ) from error
        except RecursionError as error:
            raise FormatError(
                f"{self._what} has the key {shown(key)}, which is nested too deeply."
            ) from error
        except ValueError as error:
            raise FormatError(
                f"{self._what} has the key {shown(key)}, in which {error} isn't understood."
            ) from error
        return lambda name: node(name, 1) != 0


class _Name:
    """A module's name while it is matched: a set of places in it is an integer, bit i the place
    before character i."""

    def __init__(self, text: str, spend: Callable[[], None]) -> None:
        self.text = text
        self.spend = spend
        self.end = 1 << len(text)
        self._having: dict[re.Pattern[str], int] = {}

    def having(self, one: re.Pattern[str]) -> int:
        """The places after which stands a character that `one` matches."""
        if one not in self._having:
            self._having[one] = sum(
                1 << i for i, character in enumerate(self.text) if one.fullmatch(character)
            )
        return self._having[one]

    def boundaries(self) -> int:
        """The places between a character of a word and another."""
        words = self.having(re.compile(r"\w"))
        return words ^ (words << 1)


# A part of an expression: the places that it can begin at → all that it can end at.
_Node = Callable[[_Name, int], int]


class _Parser:
    """The parts of an expression that `re` has compiled."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> _Node:
        """Raises `ValueError`, naming what isn't understood."""
        return self._choices()

    def _choices(self) -> _Node:
        choices = [self._sequence()]
        while self._take("|"):
            choices.append(self._sequence())
        return choices[0] if len(choices) == 1 else _any_of(choices)

    def _sequence(self) -> _Node:
        nodes: list[_Node] = []
        word = ""
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            found = self._atom()
            counts = self._counts()
            if isinstance(found, str) and counts is None:
                word += found
                continue
            if word:
                nodes.append(_literal(word))
                word = ""
            node = _literal(found) if isinstance(found, str) else found
            nodes.append(node if counts is None else _repeated(node, *counts))
        return _all_of([*nodes, *([_literal(word)] if word else [])])

    def _atom(self) -> _Node | str:
        character = self._text[self._at]
        if character == "[":
            match = _CLASS.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            return _character(match[0])
        self._at += 1
        if character == "(":
            return self._group()
        if character == "\\":
            return self._escaped()
        if character in ".^$":
            return {".": _character("."), "^": _at_begin, "$": _at_end}[character]
        return character

    def _group(self) -> _Node:
        ahead = None
        if self._take("?"):
            begin = self._at
            if self._take("P<"):
                self._at = self._text.index(">", self._at) + 1
            elif self._take("=") or self._take("!"):
                ahead = self._text[begin] == "="
            elif not self._take(":"):
                raise ValueError(shown(self._text[begin - 2 : begin + 2]))
        node = self._choices()
        self._at += 1
        return node if ahead is None else _ahead(node, ahead)

    def _escaped(self) -> _Node | str:
        character = self._text[self._at]
        self._at += 1
        if character in "dDwWsS":
            return _character("\\" + character)
        if character in "bBAZ":
            return {"b": _at_boundary, "B": _off_boundary, "A": _at_begin, "Z": _at_very_end}[
                character
            ]
        if character.isascii() and character.isalnum():
            raise ValueError(f"'\\{character}'")
        return character

    def _counts(self) -> tuple[int, int] | None:
        """How often what stands before is repeated, at least and at most."""
        match = _COUNTS.match(self._text, self._at)
        if match and match[0] != "{}":
            self._at = match.end()
            low = int(match[1] or 0)
            counts = low, (int(match[3] or _ENDLESS) if match[2] else low)
        elif (character := self._text[self._at : self._at + 1]) in _QUANTIFIERS:
            self._at += 1
            counts = _QUANTIFIERS[character]
        else:
            return None
        if self._take("+"):
            raise ValueError("a possessive quantifier")
        self._take("?")  # what matches first makes no difference
        return counts

    def _take(self, word: str) -> bool:
        found = self._text.startswith(word, self._at)
        self._at += len(word) if found else 0
        return found


def _literal(word: str) -> _Node:
    def node(name: _Name, places: int) -> int:
        name.spend()
        ends, at = 0, name.text.find(word)
        while at >= 0:
            ends |= (places >> at & 1) << (at + len(word))
            at = name.text.find(word, at + 1)
        return ends

    return node


def _character(pattern: str) -> _Node:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = re.compile(pattern)

    def node(name: _Name, places: int) -> int:
        name.spend()
        return (places & name.having(one)) << 1

    return node


def _all_of(nodes: list[_Node]) -> _Node:
    def node(name: _Name, places: int) -> int:
        for part in nodes:
            if not places:
                break
            places = part(name, places)
        return places

    return node


def _any_of(nodes: list[_Node]) -> _Node:
    def node(name: _Name, places: int) -> int:
        name.spend()
        ends = 0
        for part in nodes:
            ends |= part(name, places)
        return ends

    return node


def _repeated(part: _Node, low: int, high: int) -> _Node:
    def node(name: _Name, places: int) -> int:
        for _ in range(low):
            name.spend()
            before, places = places, part(name, places)
            if places in (0, before):
                break
        reached = new = places
        for _ in range(high - low):
            if not new:
                break
            name.spend()
            new = part(name, new) & ~reached
            reached |= new
        return reached

    return node


def _ahead(part: _Node, expected: bool) -> _Node:
    def node(name: _Name, places: int) -> int:
        found = 0
        for i in range(len(name.text) + 1):
            if places >> i & 1 and bool(part(name, 1 << i)) is expected:
                found |= 1 << i
        return found

    return node


def _at_begin(name: _Name, places: int) -> int:
    return places & 1


def _at_end(name: _Name, places: int) -> int:
    return places & (name.end | (name.end >> 1 if name.text.endswith("\n") else 0))


def _at_very_end(name: _Name, places: int) -> int:
    return places & name.end


def _at_boundary(name: _Name, places: int) -> int:
    return places & name.boundaries()


def _off_boundary(name: _Name, places: int) -> int:
    return places & ~name.boundaries()
