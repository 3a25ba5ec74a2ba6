"""Axes that count only some indexes of another: the layers of one kind, by a rule.

    a = "l where layer_types is full_attention or l % every == every - 1"
    n = "l but a"

A rule is choices joined by `or`, as those of an `Expression`: the first whose keys config.json has.
Each is one test, or several joined by `and`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import msgspec

from ckptforge.errors import ConfigError, shown
from ckptforge.tables.model_config import Condition, Config, Expression
from ckptforge.tables.per_layer import lengths_by_layer

_SELECTION = re.compile(r"([A-Za-z_]\w*) (where|but) (.+)")
_LISTED = re.compile(r"([A-Za-z_]\w*) is( not)? (\w+(?: \w+)*)")
_NUMBERED = re.compile(r"([A-Za-z_]\w*)( not)? in ([A-Za-z_]\w*)")
_REMAINDER = re.compile(r"([A-Za-z_]\w*) % ([^<>=%]+) == ([^<>=%]+)")
_ORDERED = re.compile(r"([A-Za-z_]\w*) (<|>=) ([^<>=%]+)")
_MOST = 1 << 16  # indexes that a rule is applied to

Holds = Callable[[int], bool]


class _Keyed(msgspec.Struct, frozen=True):
    """A test on what config.json says under one key; `wanted` is its outcome."""

    key: str
    wanted: bool

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of config.json that it needs."""
        return (self.key,)


class Listed(_Keyed, frozen=True):
    """`KEY is WORD`: config.json lists a value for each index, and that of an index is one of
    `words`, or with `is not` none of them. The list may go on, as for layers after the last."""

    words: frozenset[str]

    def made(self, config: Config, length: int, where: str) -> Holds:
        """The test on an index. Raises `ConfigError`."""
        values = config[self.key]
        if not isinstance(values, list) or len(values) < length:
            found = f"a list of {len(values)}" if isinstance(values, list) else shown(values)
            raise ConfigError(
                f"{where}: {self.key} is {found}, expected a list of {length} values."
            )
        held = [str(value) in self.words for value in values]
        return lambda i: held[i] == self.wanted


class Numbered(_Keyed, frozen=True):
    """`AXIS in KEY`: config.json lists the indexes, or with `not in` the others."""

    def made(self, config: Config, length: int, where: str) -> Holds:
        """The test on an index. Raises `ConfigError`."""
        values = config[self.key]
        if not isinstance(values, list) or not all(type(i) is int for i in values):
            raise ConfigError(
                f"{where}: {self.key} is {shown(values)}, expected a list of numbers."
            )
        held = frozenset(values)
        return lambda i: (i in held) == self.wanted


class Switched(msgspec.Struct, frozen=True):
    """`KEY`: all indexes where config.json's value is true, or a count other than 0, else none."""

    on: Condition

    @property
    def keys(self) -> tuple[str, ...]:
        """The key of config.json that it looks at."""
        return (self.on.key,)

    def made(self, config: Config, length: int, where: str) -> Holds:
        """The test on an index."""
        holds = self.on.holds(config)
        return lambda _: holds


class Remainder(msgspec.Struct, frozen=True):
    """`AXIS % every == rest`."""

    every: Expression
    rest: Expression

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of config.json that it needs."""
        return (*self.every.keys, *self.rest.keys)

    def made(self, config: Config, length: int, where: str) -> Holds:
        """The test on an index. Raises `ConfigError`."""
        step, rest = self.every.evaluate(config, where), self.rest.evaluate(config, where)
        if not step:
            raise ConfigError(f"{where}: {self.every.text} is {step}, expected a positive integer.")
        return lambda i: i % step == rest


class Ordered(msgspec.Struct, frozen=True):
    """`AXIS < bound`, or `AXIS >= bound`."""

    bound: Expression
    below: bool

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of config.json that it needs."""
        return self.bound.keys

    def made(self, config: Config, length: int, where: str) -> Holds:
        """The test on an index. Raises `ConfigError`."""
        bound = self.bound.evaluate(config, where) or 0
        return lambda i: (i < bound) == self.below


class Counted(msgspec.Struct, frozen=True):
    """`KEY is 6`: the axes whose lengths may differ between layers are as long as `wanted` says."""

    wanted: tuple[tuple[Expression, int], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """None: config.json needn't say it in one place."""
        return ()

    def made(self, config: Config, length: int, where: str) -> Holds:
        """The test on an index. Raises `ConfigError`."""
        lengths = [lengths_by_layer(one, config, length, where) for one, _ in self.wanted]
        wanted = [size for _, size in self.wanted]
        return lambda i: [each[i] for each in lengths] == wanted


Test = Listed | Numbered | Switched | Remainder | Ordered | Counted


class Selection(msgspec.Struct, frozen=True):
    """The indexes of the axis `of` for which a rule holds, or, with `but`, those that are none of
    another selection's."""

    text: str
    of: str
    length: Expression
    rule: tuple[tuple[Test, ...], ...] = ()
    but: Selection | None = None
    only: Test | None = None  # of those that the rule holds for, or is left by `but`
    may_be_none: bool = False
    choices: tuple[str, ...] = ()  # none of which is a length

    def numbers(
        self, config: Config, where: str, length: int | None = None
    ) -> tuple[int, ...] | None:
        """The indexes in order; None where config.json doesn't say which, or how many there are of
        the axis, unless `length` does. Raises `ConfigError` for values of the wrong kind."""
        if length is None and (length := self.length.evaluate(config, where)) is None:
            return None
        if length > _MOST:
            raise ConfigError(f"{where}: {self.length.text} is {length}, over {_MOST}.")
        found = self._by_rule(config, where, length)
        if found is None or self.only is None:
            return found
        return tuple(filter(self.only.made(config, length, where), found))

    def _by_rule(self, config: Config, where: str, length: int) -> tuple[int, ...] | None:
        if self.but is not None:
            others = self.but.numbers(config, where, length)
            return None if others is None else without(length, others)
        for tests in self.rule:
            if all(_is_decided(test, config) for test in tests):
                made = [test.made(config, length, where) for test in tests]
                return tuple(i for i in range(length) if all(holds(i) for holds in made))
        return None

    def evaluate(self, config: Config, where: str) -> int | None:
        """How many there are; None where config.json doesn't say. Raises `ConfigError`."""
        found = self.numbers(config, where)
        return None if found is None else len(found)


def _is_decided(test: Test, config: Config) -> bool:
    """Whether config.json says what a test is about: of a switch, by leaving it out, too."""
    if isinstance(test, Switched):
        return bool(config)
    return all(config.get(key) is not None for key in test.keys)


def without(length: int, others: tuple[int, ...]) -> tuple[int, ...]:
    """The indexes of an axis but for some."""
    gone = frozenset(others)
    return tuple(i for i in range(length) if i not in gone)


def is_selection(text: str) -> bool:
    """Whether the row of an axis says that it counts only some of another."""
    return _SELECTION.fullmatch(text) is not None


def parse_selection(text: str, known: Mapping[str, Expression | Selection]) -> Selection:
    """Raises `ValueError` with what is wrong."""
    match = _SELECTION.fullmatch(text)
    assert match is not None, text
    of, word, rest = match.groups()
    base = known.get(of)
    if not isinstance(base, Expression):
        raise ValueError(f"{of!r} isn't an axis above it whose length config.json says")
    if word == "where":
        return Selection(text=text, of=of, length=base, rule=_parse_rule(rest, of))
    other = known.get(rest)
    if not isinstance(other, Selection) or other.of != of or other.but is not None:
        raise ValueError(f"{rest!r} isn't an axis above it that is '{of} where …'")
    return Selection(text=text, of=of, length=base, but=other)


def _parse_rule(text: str, axis: str) -> tuple[tuple[Test, ...], ...]:
    choices = [choice.split(" and ") for choice in text.split(" or ")]
    found = tuple(tuple(_parse_test(test.strip(), axis) for test in tests) for tests in choices)
    for choice, tests in zip(text.split(" or "), found, strict=True):
        if len(found) > 1 and not any(test.keys for test in tests):
            raise ValueError(
                f"{choice.strip()!r} names no key of config.json, so it would hold for every model"
            )
    return found


def _parse_test(text: str, axis: str) -> Test:
    if match := _LISTED.fullmatch(text):
        return Listed(match[1], match[2] is None, frozenset(match[3].split()))
    if (match := _NUMBERED.fullmatch(text)) and match[1] == axis:
        return Numbered(match[3], match[2] is None)
    if (match := _REMAINDER.fullmatch(text)) and match[1] == axis:
        return Remainder(Expression(match[2].strip()), Expression(match[3].strip()))
    if (match := _ORDERED.fullmatch(text)) and match[1] == axis:
        return Ordered(Expression(match[3].strip()), match[2] == "<")
    if text.isidentifier():
        return Switched(Condition(text))
    raise ValueError(
        f"{text!r} isn't a rule for {axis!r}: 'KEY', 'KEY is WORD', 'KEY is not WORD', "
        f"'{axis} % N == M', '{axis} < N', '{axis} >= N', '{axis} in KEY' or '{axis} not in KEY'"
    )


def named_axis(axes: Mapping[str, Expression | Selection], selection: Selection) -> str:
    """The axis that is a selection."""
    return next(axis for axis, one in axes.items() if one == selection)


def selections_of(axes: Mapping[str, Expression | Selection]) -> Iterator[tuple[str, Selection]]:
    """The axes that are selections."""
    return ((axis, one) for axis, one in axes.items() if isinstance(one, Selection))
