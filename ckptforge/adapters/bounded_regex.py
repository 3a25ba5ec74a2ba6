"""Regular expressions matched without backtracking, which in Python's `re` can take years.

A set of places in a text is an integer, bit i the place before character i. Each part of an
expression is a function from the places that it can begin at to all that it can end at.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping

from ckptforge.errors import shown

_COUNTS = re.compile(r"\{(\d*)(?:(,)(\d*))?\}")
_CLASS = re.compile(r"\[\^?\]?(?:[^\]\\]|\\.)*\]", re.DOTALL)
_ENDLESS = 1 << 32
_QUANTIFIERS = {"*": (0, _ENDLESS), "+": (1, _ENDLESS), "?": (0, 1)}


class Name:
    """A text while it is matched; `spend` is called for each step, and may raise."""

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


Node = Callable[[Name, int], int]


def parse(text: str) -> Node:
    """An expression that `re` has compiled: given the places of a name where it may begin, all
    those where it can end. Raises `ValueError`, naming what isn't understood."""
    return _Parser(text).choices()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def choices(self) -> Node:
        choices = [self._sequence()]
        while self._take("|"):
            choices.append(self._sequence())
        return choices[0] if len(choices) == 1 else _any_of(choices)

    def _sequence(self) -> Node:
        nodes: list[Node] = []
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

    def _atom(self) -> Node | str:
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
        if character == ".":
            return _character(".")
        return _ANCHORS[character] if character in "^$" else character

    def _group(self) -> Node:
        ahead = None
        if self._take("?"):
            begin = self._at
            if self._take("P<"):
                self._at = self._text.index(">", self._at) + 1
            elif self._take("=") or self._take("!"):
                ahead = self._text[begin] == "="
            elif not self._take(":"):
                raise ValueError(shown(self._text[begin - 2 : begin + 2]))
        node = self.choices()
        self._at += 1
        return node if ahead is None else _ahead(node, ahead)

    def _escaped(self) -> Node | str:
        character = self._text[self._at]
        self._at += 1
        if character in "dDwWsS":
            return _character("\\" + character)
        if character in "bBAZ":
            return _ANCHORS[character]
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


def _literal(word: str) -> Node:
    def node(name: Name, places: int) -> int:
        name.spend()
        ends, at = 0, name.text.find(word)
        while at >= 0:
            ends |= (places >> at & 1) << (at + len(word))
            at = name.text.find(word, at + 1)
        return ends

    return node


def _character(pattern: str) -> Node:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = re.compile(pattern)

    def node(name: Name, places: int) -> int:
        name.spend()
        return (places & name.having(one)) << 1

    return node


def _all_of(nodes: list[Node]) -> Node:
    def node(name: Name, places: int) -> int:
        for part in nodes:
            if not places:
                break
            places = part(name, places)
        return places

    return node


def _any_of(nodes: list[Node]) -> Node:
    def node(name: Name, places: int) -> int:
        name.spend()
        ends = 0
        for part in nodes:
            ends |= part(name, places)
        return ends

    return node


def _repeated(part: Node, low: int, high: int) -> Node:
    def node(name: Name, places: int) -> int:
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


def _ahead(part: Node, expected: bool) -> Node:
    def node(name: Name, places: int) -> int:
        found = 0
        for i in range(len(name.text) + 1):
            if places >> i & 1 and bool(part(name, 1 << i)) is expected:
                found |= 1 << i
        return found

    return node


def _at_end(name: Name, places: int) -> int:
    return places & (name.end | (name.end >> 1 if name.text.endswith("\n") else 0))


_ANCHORS: Mapping[str, Node] = {
    "^": lambda name, places: places & 1,
    "A": lambda name, places: places & 1,
    "$": _at_end,
    "Z": lambda name, places: places & name.end,
    "b": lambda name, places: places & name.boundaries(),
    "B": lambda name, places: places & ~name.boundaries(),
}
