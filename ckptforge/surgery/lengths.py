"""config.json after the lengths of axes have changed: which keys they stand for, and what those
must say then."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from ckptforge.errors import CkptforgeError
from ckptforge.tables.lengths import Lengths
from ckptforge.tables.selection import selections_of
from ckptforge.tables.table import Table

Config = Mapping[str, Any]
_WORD = re.compile(r"[A-Za-z_][\w.]*|[0-9]+|[*/+-]")  # a key of an inner object is no identifier


def with_lengths(
    table: Table, config: Config, after: Lengths, changed: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """(config.json where every axis has the length that it has after some have `changed`, what it
    can't say). Keys that nothing stands for stay."""
    found = dict(config)
    # what only says the length of an axis that stays isn't to be changed for another's sake
    stay = (single(table, axis, config) for axis in table.axes if axis not in changed)
    fixed = {key for key in stay if key is not None}
    order = [*changed, *(axis for axis in table.axes if axis not in changed)]
    order.sort(key=lambda axis: axis not in changed or single(table, axis, config) is None)
    for axis in order:
        if axis not in after or axis not in table.axes:
            continue
        if _says(table, axis, found) == after[axis]:
            fixed |= _used(table, axis, found) if axis in changed else set()
            continue
        if axis not in changed and _says(table, axis, config) is None:
            continue  # it never said it
        if axis not in changed and _none_whatever_it_says(table, axis, after):
            continue
        for key, value in _solutions(table, axis, found, after[axis], fixed):
            found[key] = value
            if _says(table, axis, found) == after[axis]:
                fixed.add(key)
                break
    wrong = []
    for axis in table.axes:
        if axis in after and _says(table, axis, config) is not None:
            said = _says(table, axis, found)
            none = after[axis] == 0 and said is None
            none |= axis not in changed and _none_whatever_it_says(table, axis, after)
            if said != after[axis] and not none:
                text = table.axes[axis].text
                wrong.append(f"axis {axis} is {after[axis]}, but {text} would be {said}")
    return found, [*wrong, *_wrong_numbers(table, found, after)]


def _none_whatever_it_says(table: Table, axis: str, lengths: Lengths) -> bool:
    """Whether names have none of an axis, so that there is none whatever config.json says: it did
    so before, such as one that transformers saved without MTP layers."""
    return lengths[axis] == 0 and table.axes[axis].may_be_none


def _wrong_numbers(table: Table, config: Config, after: Lengths) -> Iterator[str]:
    """Axes that count only some of another, by config.json others than they do."""
    for axis, selection in selections_of(table.axes):
        own = tuple(after.numbers.get(axis, ()))
        try:
            said = selection.numbers(config, "")
        except CkptforgeError:
            said = None
        if said is not None and len(own) == len(said) and own != said:
            both = (", ".join(map(str, numbers)) for numbers in (own, said))
            yield f"axis {axis} is {next(both)}, but {selection.text} would be {next(both)}"


def _says(table: Table, axis: str, config: Config) -> int | None:
    """The length of an axis by a config.json; None where it says none, or none that is whole."""
    try:
        return table.axes[axis].evaluate(table.constants.with_lengths(config), "")
    except CkptforgeError:
        return None


def _choices(table: Table, axis: str) -> list[list[str]]:
    return [_WORD.findall(choice) for choice in table.axes[axis].choices]


def first_key(table: Table, axis: str) -> str | None:
    """The key that an axis is the value of, by the first choice that its table gives."""
    choices = _choices(table, axis)
    first = choices[0] if choices else []  # an axis that counts only some of another has none
    return first[0] if len(first) == 1 and first[0].isidentifier() else None


def single(table: Table, axis: str, config: Config) -> str | None:
    """The key that an axis is the value of, as config.json says it."""
    for words in _choices(table, axis):
        keys = [word for word in words if word.isidentifier()]
        if all(config.get(key) is not None for key in keys):
            return keys[0] if words == keys and len(keys) == 1 else None
    return None


def _used(table: Table, axis: str, config: Config) -> set[str]:
    for words in _choices(table, axis):
        keys = {word for word in words if word.isidentifier()}
        if all(config.get(key) is not None for key in keys):
            return keys
    return set()


def _solutions(
    table: Table, axis: str, config: Config, wanted: int, fixed: set[str]
) -> list[tuple[str, int]]:
    """(key, value) of what would make an axis as long as it should be: first of what says it alone,
    then of what several keys say."""
    present = [words for words in _choices(table, axis) if _is_present(words, config)][:1]
    alone = [words for words in _choices(table, axis) if len(words) == 1 and words not in present]
    found = []
    single = any(len(words) == 1 for words in present)
    for words in (*present, *alone) if single else (*alone, *present):
        for key in (word for word in words if word.isidentifier() and word not in fixed):
            value = _solve(words, key, config, wanted)
            if value is not None:
                found.append((key, value))
    return found


def _is_present(words: list[str], config: Config) -> bool:
    return all(config.get(word) is not None for word in words if word.isidentifier())


def _solve(words: list[str], key: str, config: Config, wanted: int) -> int | None:
    """The whole number that a key must be; an expression is linear in it, or in its inverse."""
    if words == [key]:
        return wanted
    try:
        zero, one, two = (_value(words, {**config, key: Fraction(n)}) for n in (0, 1, 2))
        if zero is not None and one is not None and one != zero:
            found = (wanted - zero) / (one - zero)
        elif one is not None and two is not None and wanted:
            found = one / wanted  # c / x
        else:
            return None
        check = _value(words, {**config, key: found})
    except (TypeError, ValueError, ArithmeticError):
        return None
    whole = found.denominator == 1 and found >= 0 and check == wanted
    return int(found) if whole else None


def _value(words: list[str], config: Config) -> Fraction | None:
    """An expression in fractions; None where it divides by 0."""
    total, sign, product, operator = Fraction(0), 1, Fraction(1), "*"
    for word in words:
        if word in "+-":
            total += sign * product
            sign, product, operator = (1 if word == "+" else -1), Fraction(1), "*"
        elif word in "*/":
            operator = word
        else:
            operand = Fraction(int(word)) if word.isdecimal() else Fraction(config[word])
            if operator == "/" and not operand:
                return None
            product = product * operand if operator == "*" else product / operand
    return total + sign * product
