"""Tensor names read as those of a layout, and the lengths of axes that they tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from operator import contains, itemgetter
from typing import Any, cast

from ckptforge.errors import ConfigError, ConfigNeededError, LayoutError
from ckptforge.spelling import option
from ckptforge.tables.axes import Pattern
from ckptforge.tables.lengths import Lengths
from ckptforge.tables.model_config import Config
from ckptforge.tables.selection import named_axis, selections_of, without
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.skeletons import index_of, skeletons_of
from ckptforge.tables.table import Layout, Table

# pattern → index of the axes in the name → the stored name
Names = dict[Pattern, dict[tuple[int, ...], str]]


class Alike:
    """Names that differ in numbers alone, of which each has so many."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.names: list[str] = []
        self.in_all: list[str] = []  # the numbers of one name after those of another

    @property
    def numbers(self) -> list[tuple[str, ...]]:
        """Those in each name."""
        return list(zip(*self._columns, strict=True)) if self.count else [()] * len(self.names)

    @cached_property
    def indexes(self) -> list[tuple[int, ...]] | None:
        """The same as the indexes of axes; None where one can't be that."""
        columns = [list(map(index_of, column)) for column in self._columns]
        if any(None in column for column in columns):
            return None
        found = list(zip(*columns, strict=True)) if columns else [()] * len(self.names)
        return cast("list[tuple[int, ...]]", found)

    @property
    def _columns(self) -> list[list[str]]:
        return [self.in_all[i :: self.count] for i in range(self.count)]


BySkeleton = dict[str, Alike]


def recognise_names(
    layout: Layout, names: Mapping[str, Any], lengths: Lengths | None = None
) -> tuple[Names, list[str]]:
    """(pattern → numbers in the name → tensor name, the names that no pattern of the layout has).

    Where several patterns are alike except for what is added to an index, the known `lengths` of
    axes distinguish them.
    """
    found, unknown = _recognised(layout, _by_skeleton(names), lengths or Lengths())
    return found, _in_order(unknown, names)


def _in_order(unknown: Iterable[str], names: Iterable[str]) -> list[str]:
    chosen = set(unknown)
    return [name for name in names if name in chosen] if chosen else []


class NamedShapes(dict[str, tuple[int, ...]]):
    """The shapes of tensors by their names, which are taken apart once for all layouts that they
    are read as."""

    @cached_property
    def by_skeleton(self) -> BySkeleton:
        """Skeleton → the numbers in the names that have it, with the names."""
        return _taken_apart(self)


def _by_skeleton(names: Iterable[str]) -> BySkeleton:
    if isinstance(names, NamedShapes):
        return names.by_skeleton
    return _taken_apart(names)


def _taken_apart(names: Iterable[str]) -> BySkeleton:
    found: BySkeleton = {}
    names = list(names)
    for name, (skeleton, numbers) in zip(names, skeletons_of(names), strict=True):
        if (alike := found.get(skeleton)) is None:
            alike = found[skeleton] = Alike(len(numbers))
        alike.names.append(name)
        alike.in_all += numbers
    return found


def _recognised(layout: Layout, names: BySkeleton, lengths: Lengths) -> tuple[Names, list[str]]:
    patterns: dict[str, list[Pattern]] = {}
    for pattern in (*layout.patterns, *layout.copies):
        patterns.setdefault(pattern.skeleton, []).append(pattern)
    found: Names = {}
    unknown: list[str] = []
    for skeleton, members in names.items():
        possible = [(one, _in_names(one, lengths)) for one in patterns.get(skeleton, ())]
        indexes = members.indexes
        if not possible or indexes is None or any(one.has_numbers for one, _ in possible):
            unknown += _told_one_by_one(layout, members, possible, found)
            continue
        # by the axes alone in which some numbers aren't those of each pattern
        some = [
            axis
            for axis, numbers in enumerate(map(set, zip(*indexes, strict=True)))
            if not all(number in limit[axis] for _, limit in possible for number in numbers)
        ]
        by_number: dict[tuple[int, ...], dict[tuple[int, ...], str]] = {}
        for index, name in zip(indexes, members.names, strict=True):
            numbers = tuple([index[axis] for axis in some])
            if (own := by_number.get(numbers)) is None:
                own = by_number[numbers] = found.setdefault(_first_with(index, possible), {})
            own[index] = name
    return found, unknown


_Possible = Sequence[tuple[Pattern, list[Container[int]]]]  # patterns, the numbers of their axes


def _first_with(index: tuple[int, ...], possible: _Possible) -> Pattern:
    """The first pattern that has an index, or the last."""
    fitting = (pattern for pattern, limit in possible if all(map(contains, limit, index)))
    return next(fitting, possible[-1][0])


def _told_one_by_one(
    layout: Layout, members: Alike, possible: _Possible, found: Names
) -> Iterator[str]:
    """Names of one skeleton that may have any numbers, added to those that are `found`; the unknown
    ones come out."""
    for name, numbers in zip(members.names, members.numbers, strict=True):
        matching = None
        for pattern, limit in possible:
            if (index := pattern.match(numbers)) is not None:
                matching = pattern, index
                if all(map(contains, limit, index)):
                    break
        if matching is not None:
            found.setdefault(matching[0], {})[matching[1]] = name
        elif not (layout.passed and layout.passes(name)):
            yield name


def _in_names(pattern: Pattern, lengths: Lengths) -> list[Container[int]]:
    """Which numbers stand in the names of a pattern, as far as is known."""
    return [lengths.in_names(axis, pattern.offsets.get(axis)) for axis in pattern.name_axes]


def indexed(found: Names, lengths: Lengths) -> Names:
    """Recognised names by the indexes of their axes in place of the numbers. Raises
    `LayoutError`."""
    resolved: Names = {}
    for pattern, names in found.items():
        if not pattern.offsets and lengths.numbers.keys().isdisjoint(pattern.name_axes):
            resolved[pattern] = names
            continue
        axes = [(axis, pattern.offsets.get(axis)) for axis in pattern.name_axes]
        columns = [
            (column, {number: lengths.index(axis, number, added) for number in set(column)})
            for (axis, added), column in zip(axes, zip(*names, strict=True), strict=True)
        ]
        indexes = list(zip(*(map(of.__getitem__, column) for column, of in columns), strict=True))
        resolved[pattern] = dict(zip(indexes, names.values(), strict=True))
        if any(index < 0 for _, of in columns for index in of.values()):
            for index, name in zip(indexes, names.values(), strict=True):
                if min(index) >= 0:
                    continue
                axis, added = axes[index.index(min(index))]
                if axis in lengths.numbers:
                    known = ", ".join(map(str, lengths.numbers[axis])) or "none"
                    which = f"numbers, by axis {axis}, are {known}"
                else:
                    which = f"numbers begin with {lengths[added or '']}"
                raise LayoutError(f"{name} isn't {pattern.template}, whose {which}.", (name,))
    return resolved


def read_names(
    table: Table, layout: Layout, names: Mapping[str, Any], config: Config, where: str
) -> tuple[AxisSizes, Names, list[str]]:
    """(the lengths that config.json and names tell, pattern → index → name, names that the layout
    doesn't have). Raises `LayoutError` where they contradict each other."""
    sizes = AxisSizes()
    sizes.learn_config(table, config, where)
    by_skeleton = _by_skeleton(names)
    numbered, unknown = _recognised(layout, by_skeleton, sizes.lengths)
    if _learn_offsets(sizes, layout, numbered) | _learn_numbers(sizes, table, layout, numbered):
        numbered, unknown = _recognised(layout, by_skeleton, sizes.lengths)
    _check_told_apart(sizes, layout)
    _learn_none(sizes, table, numbered, config, where)
    found = indexed(numbered, sizes.lengths)
    _learn_counts(sizes, found)
    return sizes, found, _in_order(unknown, names)


def _learn_offsets(sizes: AxisSizes, layout: Layout, numbered: Names) -> bool:
    """Where config.json doesn't tell the length of an axis that is added to others: those begin
    where their own names do, which are like no other's, else behind the names of the axis itself.
    Whether anything was learnt."""
    skeletons = Counter(pattern.skeleton for pattern in layout.patterns)
    offsets = {o for p in (*layout.patterns, *layout.copies) for o in p.offsets.values()}
    unknown = {offset for offset in offsets if sizes.get(offset) is None}
    for offset in unknown:
        own = [
            numbers[p.name_axes.index(offset)]
            for p, names in numbered.items()
            if offset in p.name_axes
            for numbers in names
        ]
        others = [
            numbers[pattern.name_axes.index(axis)]
            for pattern, names in numbered.items()
            for axis, added in pattern.offsets.items()
            if added == offset and skeletons[pattern.skeleton] == 1
            for numbers in names
        ]
        if own or others:
            sizes.learn(offset, min(others) if others else max(own) + 1, "the numbers in names")
        else:
            sizes.learn(offset, 0, "the names, in which there is none")
    return bool(unknown)


def _learn_numbers(sizes: AxisSizes, table: Table, layout: Layout, numbered: Names) -> bool:
    """Where config.json doesn't say which layers an axis counts: those in whose names it stands, if
    the others are an axis, too, so that no layer can be lacking unnoticed. Whether anything was
    learnt. Raises `ConfigNeededError`."""
    unknown = [one for one in selections_of(table.axes) if one[0] not in sizes.numbers]
    for axis, selection in unknown:
        if selection.but is not None:
            of, other = selection.of, named_axis(table.axes, selection.but)
            total = sizes.get(of) or 1 + max(_numbers_of(numbered, table, of), default=-1)
            numbers = without(total, sizes.numbers[other])
        elif any(other.but == selection for _, other in selections_of(table.axes)):
            kinds = Counter(p.skeleton for p in layout.patterns if not p.offsets)
            own = {p: names for p, names in numbered.items() if kinds[p.skeleton] == 1}
            end = sizes.get(selection.of)  # behind which are layers of other axes
            among = set(_numbers_of(own, table, axis))
            numbers = tuple(sorted(i for i in among if end is None or i < end))
        else:
            raise ConfigNeededError(
                f"which numbers axis {axis} counts is said by config.json alone "
                f"({selection.text}), which is absent or lacks it: give it with "
                f"{option('config')}."
            )
        sizes.learn_numbers(axis, numbers, "the numbers in names")
    return bool(unknown)


def _numbers_of(numbered: Names, table: Table, axis: str) -> Iterator[int]:
    """The numbers in names of an axis, and of those that count some of it."""
    own = {axis, *(name for name, one in selections_of(table.axes) if one.of == axis)}
    for pattern, names in numbered.items():
        for at, found in enumerate(pattern.name_axes):
            if found in own and found not in pattern.offsets:
                yield from (index[at] for index in names)


def _check_told_apart(sizes: AxisSizes, layout: Layout) -> None:
    """No number is counted by two axes of names that are alike but for them. Raises
    `ConfigError`."""
    alike: dict[str, Pattern] = {}
    for pattern in layout.patterns:
        other = alike.setdefault(pattern.skeleton, pattern)
        for one, two in zip(pattern.name_axes, other.name_axes, strict=True):
            both = set(sizes.numbers.get(one, ())).intersection(sizes.numbers.get(two, ()))
            if one != two and both:
                raise ConfigError(
                    f"{min(both)} is counted by axis {one} and by axis {two}, by config.json, so "
                    f"that {pattern.template} and {other.template} are one name."
                )


def _learn_none(
    sizes: AxisSizes, table: Table, numbered: Names, config: Config, where: str
) -> None:
    """Axes that may have length 0: so where no name has one."""
    for axis, expression in table.axes.items():
        if not expression.may_be_none:
            continue
        size = expression.evaluate(config, where)
        if not any(axis in pattern.name_axes for pattern in numbered):
            sizes.learn(axis, 0, "the names, in which there is none")
        elif size is not None:
            sizes.learn(axis, size, f"{where} ({expression.text})")


def _learn_counts(sizes: AxisSizes, found: Names) -> None:
    """The axes in names: as many as config.json says, else as the highest number."""
    highest: dict[str, tuple[int, str]] = {}
    for pattern, names in found.items():
        for at, axis in enumerate(pattern.name_axes):
            index = max(reversed(names), key=itemgetter(at))
            if index[at] >= highest.get(axis, (-1, ""))[0]:
                highest[axis] = (index[at], names[index])
    for axis, (i, name) in highest.items():
        size = sizes.get(axis)
        if size is None:
            sizes.learn(axis, i + 1, f"the name {name}")
        elif i >= size:
            raise LayoutError(
                f"{name} has {axis} = {i}, but there should be only {size}, by "
                f"{sizes.known[axis][1]}.",
                (name,),
            )
