"""Tensor names read as those of a layout, and the lengths of axes that they tell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from operator import itemgetter, sub
from typing import Any

from ckptforge.errors import LayoutError
from ckptforge.tables.axes import Pattern, skeleton_of
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Layout, Table

# pattern → index of the axes in the name → the stored name
Names = dict[Pattern, dict[tuple[int, ...], str]]
BySkeleton = dict[str, list[tuple[list[str], str]]]


def recognise_names(
    layout: Layout, names: Mapping[str, Any], lengths: Mapping[str, int] | None = None
) -> tuple[Names, list[str]]:
    """(pattern → numbers in the name → tensor name, the names that no pattern of the layout has).

    Where several patterns are alike except for what is added to an index, the known `lengths` of
    axes distinguish them.
    """
    found, unknown = _recognised(layout, _by_skeleton(names), lengths or {})
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
    for name in names:
        skeleton, numbers = skeleton_of(name)
        found.setdefault(skeleton, []).append((numbers, name))
    return found


def _recognised(
    layout: Layout, names: BySkeleton, lengths: Mapping[str, int]
) -> tuple[Names, list[str]]:
    patterns: dict[str, list[Pattern]] = {}
    for pattern in (*layout.patterns, *layout.copies):
        patterns.setdefault(pattern.skeleton, []).append(pattern)
    found: Names = {}
    unknown: list[str] = []
    for skeleton, members in names.items():
        alike = patterns.get(skeleton, ())
        limits = [_limits(pattern, lengths) for pattern in alike]
        for numbers, name in members:
            matching = None
            for pattern, limit in zip(alike, limits, strict=True):
                index = pattern.match(numbers)
                if index is not None:
                    matching = pattern, index
                    if _in_range(index, limit):
                        break
            if matching is None:
                unknown.append(name)
            else:
                found.setdefault(matching[0], {})[matching[1]] = name
    return found, unknown


def _limits(pattern: Pattern, lengths: Mapping[str, int]) -> list[tuple[int, float]]:
    """For each number in a name of a pattern the least, and what it must be below, as far as is
    known."""
    found = []
    for axis in pattern.name_axes:
        least = lengths.get(pattern.offsets.get(axis, ""), 0)
        found.append((least, least + lengths.get(axis, math.inf)))
    return found


def _in_range(index: Sequence[int], limits: Sequence[tuple[int, float]]) -> bool:
    numbers = zip(index, limits, strict=True)
    return all(least <= number < most for number, (least, most) in numbers)


def without_offsets(found: Names, lengths: Mapping[str, int]) -> Names:
    """Recognised names by the indexes of their axes. Raises `LayoutError`."""
    resolved: Names = {}
    for pattern, names in found.items():
        if not pattern.offsets:
            resolved[pattern] = names
            continue
        axes = [pattern.offsets.get(axis) for axis in pattern.name_axes]
        added = [0 if axis is None else lengths[axis] for axis in axes]
        resolved[pattern] = {tuple(map(sub, numbers, added)): n for numbers, n in names.items()}
        if wrong := next((i for i in resolved[pattern] if min(i) < 0), None):
            name = resolved[pattern][wrong]
            raise LayoutError(
                f"{name} isn't {pattern.template}, whose numbers begin with {max(added)}.", (name,)
            )
    return resolved


def read_names(
    table: Table, layout: Layout, names: Mapping[str, Any], config: Mapping[str, Any], where: str
) -> tuple[AxisSizes, Names, list[str]]:
    """(the lengths that config.json and names tell, pattern → index → name, names that the layout
    doesn't have). Raises `LayoutError` where they contradict each other."""
    sizes = AxisSizes()
    sizes.learn_config(table, config, where)
    by_skeleton = _by_skeleton(names)
    numbered, unknown = _recognised(layout, by_skeleton, sizes.lengths)
    if _learn_offsets(sizes, layout, numbered):
        numbered, unknown = _recognised(layout, by_skeleton, sizes.lengths)
    _learn_none(sizes, table, numbered, config, where)
    found = without_offsets(numbered, sizes.lengths)
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


def _learn_none(
    sizes: AxisSizes, table: Table, numbered: Names, config: Mapping[str, Any], where: str
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
