"""The keys of a parallel configuration where they stand: in a section or in none, under one of
several names, or under what is nearly one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ckptforge.errors import shown

if TYPE_CHECKING:
    from ckptforge.validation import Written

Keys = TypeVar("Keys", bound="Written")
Content = Mapping[str, Any]
Spellings = Mapping[str, tuple[str, ...]]
"""Key → the places where it may stand beside its own name, with dots after sections."""

_LONG = 12  # letters


def read_keys(content: Content, schema: type[Keys]) -> Keys:
    """The keys of a file, validated. Raises `ValueError` as `find_keys` does, and for values that
    are wrong."""
    # pydantic, which takes longer to import than most checkpoints to inspect
    from ckptforge.parallel.config_schema import places_of_keys
    from ckptforge.validation import validate

    values, places = find_keys(content, places_of_keys(schema))

    def spell(place: tuple[str | int, ...]) -> str:
        key, *inner = map(str, place)
        shortened = (shown(part)[1:-1] for part in inner)
        return ".".join((places.get(key, key), *shortened))

    return validate(schema, values, spell)


def find_keys(content: Content, spellings: Spellings) -> tuple[dict[str, Any], dict[str, str]]:
    """(key → its value, key → the place where it stands). Raises `ValueError` for a key that stands
    at two places and says two things, for sections that are none, for what is nearly a key, and
    where there is no key at all."""
    values: dict[str, Any] = {}
    stands: dict[str, str] = {}
    for key, places in spellings.items():
        for place in (*places, key):
            value = _at(content, place)
            if value is None:
                continue
            if key in values and values[key] != value:
                raise ValueError(
                    f"{stands[key]} is {shown(values[key])}, but {place} is {shown(value)}; they "
                    "mean the same."
                )
            values[key], stands[key] = value, place
    _refuse_unknown(content, spellings)
    if not values:
        raise ValueError(
            "has none of the keys of a parallel configuration, such as model_parallel."
        )
    return values, stands


def _at(content: Content, place: str) -> Any:
    *sections, key = place.split(".")
    inner: Any = content
    for depth, section in enumerate(sections):
        inner = inner.get(section)
        if inner is None:
            return None
        if not isinstance(inner, dict):
            name = ".".join(sections[: depth + 1])
            raise ValueError(f"{name} is {shown(inner)}, expected keys and values.")
    return inner.get(key)


def _refuse_unknown(content: Content, spellings: Spellings) -> None:
    """Refuses a key that is nearly one that is read, and in a file without sections any that isn't
    one: of those that MindFormers' files have, most say nothing of how weights are cut."""
    sections = _sections(spellings)
    flat = not any(section in content for section in sections if section)
    for section, inner_keys in _held(content, sections):
        prefix = f"{section}." if section else ""
        for key in inner_keys:
            if key in sections[section]:
                continue
            near = _slip_of(str(key), sections[section])
            if near is not None:
                raise ValueError(
                    f"{prefix}{shown(str(key))[1:-1]} isn't a key of MindFormers; did you mean "
                    f"{prefix}{near}?"
                )
            if flat and not section:
                raise ValueError(
                    f"{shown(key)} isn't a key of a parallel configuration; there are "
                    f"{', '.join(spellings)}."
                )


def _sections(spellings: Spellings) -> dict[str, set[str]]:
    """Section, as a path with dots, → the keys that are read of it; "" for the file itself."""
    found: dict[str, set[str]] = {"": {*spellings}}
    for place in (place for places in spellings.values() for place in places):
        *outer, key = place.split(".")
        for depth, section in enumerate(outer):
            found.setdefault(".".join(outer[:depth]), set()).add(section)
        found.setdefault(".".join(outer), set()).add(key)
    return found


def _held(content: Content, sections: Iterable[str]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """(section, what stands in it), for those that are read of."""
    for name in sections:
        inner: Any = content
        for section in name.split(".") if name else ():
            inner = inner.get(section) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            yield name, inner


def _slip_of(word: str, words: Iterable[str]) -> str | None:
    """The one of some words that another is a slip of the pen from: one letter too many, too few,
    wrong or changed with the next, two such slips in long words; dashes and capitals don't
    count."""
    plain = word.lower().replace("-", "_")
    like = [other for other in words if len(other) > 3 and abs(len(other) - len(plain)) <= 2]
    distances = {other: _slips(plain, other) for other in like}
    most = {other: 2 if len(other) >= _LONG else 1 for other in distances}
    near = [other for other, slips in distances.items() if slips <= most[other]]
    return min(near, key=lambda other: (distances[other], other), default=None)


def _slips(a: str, b: str) -> int:
    """The distance of Damerau and Levenshtein, of neighbours that change places once."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, above, row = row, before, [i]
        for j, other in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and (letter, a[i - 2]) == (b[j - 2], other):
                cost = min(cost, above[j - 2] + 1)
            row.append(cost)
    return row[-1]
