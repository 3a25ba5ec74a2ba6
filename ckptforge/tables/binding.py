"""Binding: the tensors of a checkpoint, recognised as a layout of a table."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ckptforge.errors import LayoutError, MissingTensorsError, counted, listing, shown
from ckptforge.spelling import option
from ckptforge.tables.axes import Pattern, skeleton_of
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Layout, Table
from ckptforge.tables.unmapped import HEAD, of_kind, other_task

Shapes = Mapping[str, tuple[int, ...]]


class Binding(msgspec.Struct, frozen=True):
    """A checkpoint read as `layout`: sizes of the axes, stored names by pattern and index, and
    names the table doesn't know; `copies` is the name of each copy → that of the tensor that it
    should be equal to."""

    table: Table
    layout: Layout
    sizes: AxisSizes
    names: dict[Pattern, dict[tuple[int, ...], str]]
    absent: frozenset[str]
    unknown: tuple[str, ...]
    ignored: tuple[str, ...]
    shapes: dict[Pattern, tuple[int, ...]] = msgspec.field(default_factory=dict)
    copies: dict[str, str] = msgspec.field(default_factory=dict)

    def holds(self, tensor: str) -> bool:
        return tensor not in self.absent


Names = dict[Pattern, dict[tuple[int, ...], str]]


def recognise_names(
    layout: Layout, names: Mapping[str, Any], lengths: Mapping[str, int] | None = None
) -> tuple[Names, list[str]]:
    """(pattern → numbers in the name → tensor name, the names that no pattern of the layout has).

    Where several patterns are alike except for what is added to an index, the known `lengths` of
    axes distinguish them.
    """
    by_skeleton: dict[str, list[Pattern]] = {}
    for pattern in (*layout.patterns, *layout.copies):
        by_skeleton.setdefault(pattern.skeleton, []).append(pattern)
    found: dict[Pattern, dict[tuple[int, ...], str]] = {}
    unknown: list[str] = []
    for name in names:
        skeleton, numbers = skeleton_of(name)
        matching = [
            (pattern, index)
            for pattern in (() if "#" in name else by_skeleton.get(skeleton, ()))
            if (index := pattern.match(numbers)) is not None
        ]
        if not matching:
            unknown.append(name)
            continue
        pattern, index = next(
            (pair for pair in matching if _in_range(*pair, lengths or {})), matching[-1]
        )
        found.setdefault(pattern, {})[tuple(index[axis] for axis in pattern.name_axes)] = name
    return found, unknown


def _in_range(pattern: Pattern, index: Mapping[str, int], lengths: Mapping[str, int]) -> bool:
    for axis, number in index.items():
        offset = lengths.get(pattern.offsets.get(axis, ""), 0)
        if not 0 <= number - offset < lengths.get(axis, number + 1):
            return False
    return True


def without_offsets(found: Names, lengths: Mapping[str, int]) -> Names:
    """Recognised names by the indexes of their axes. Raises `LayoutError` for one below what is
    added to it."""
    resolved: Names = {}
    for pattern, names in found.items():
        added = [
            lengths[pattern.offsets[axis]] if axis in pattern.offsets else 0
            for axis in pattern.name_axes
        ]
        for numbers, name in names.items():
            index = tuple(number - offset for number, offset in zip(numbers, added, strict=True))
            if any(i < 0 for i in index):
                raise LayoutError(
                    f"{name} isn't {pattern.template}, whose numbers begin with {max(added)}.",
                    (name,),
                )
            resolved.setdefault(pattern, {})[index] = name
    return resolved


def read_names(
    table: Table, layout: Layout, names: Mapping[str, Any], config: Mapping[str, Any], where: str
) -> tuple[AxisSizes, Names, list[str]]:
    """(the lengths that config.json and names tell, pattern → index → name, names that the layout
    doesn't have). Raises `LayoutError` where they contradict each other."""
    sizes = AxisSizes()
    sizes.learn_config(table, config, where)
    numbered, unknown = recognise_names(layout, names, sizes.lengths)
    if _learn_offsets(sizes, layout, numbered):
        numbered, unknown = recognise_names(layout, names, sizes.lengths)
    _learn_none(sizes, table, layout, numbered, config, where)
    found = without_offsets(numbered, sizes.lengths)
    _learn_counts(sizes, found)
    return sizes, found, unknown


def bind(
    table: Table, layout: Layout, shapes: Shapes, config: Mapping[str, Any], where: str
) -> Binding:
    """Reads tensors as a layout: all that it needs are there, and names, shapes and config.json
    agree on every axis.

    `where` names the config in messages. Raises `MissingTensorsError` with the tensors that are
    missing, and `LayoutError` with both sides of a contradiction.
    """
    sizes, found, unknown = read_names(table, layout, shapes, config, where)
    absent = frozenset(_absent(table, layout, found, config, sizes))
    if missing := _missing(layout, found, sizes, absent):
        raise MissingTensorsError(_missing_text(table, layout, missing, unknown, config, where))
    pattern_shapes = {}
    for pattern, names in found.items():
        first = next(iter(names.values()))
        if len(shapes[first]) != len(pattern.shape_axes):
            raise LayoutError(
                f"{first} has shape {list(shapes[first])}, but in layout {layout.name} it has "
                f"{counted(len(pattern.shape_axes), 'axis')}.",
                (first,),
            )
        for name in names.values():
            if shapes[name] != shapes[first]:
                raise LayoutError(
                    f"{name} has shape {list(shapes[name])}, but {first}, of the same kind, has "
                    f"{list(shapes[first])}.",
                    (name, first),
                )
        pattern_shapes[pattern] = shapes[first]
    sizes.learn_shapes(
        [
            (pattern, next(iter(names.values())), pattern_shapes[pattern])
            for pattern, names in found.items()
        ]
    )
    originals = {
        pattern: found.get(layout.holding(pattern.tensors[0]), {}).get(())
        for pattern in layout.copies
    }
    copies: dict[str, str] = {}
    for pattern, original in originals.items():
        for name in found.pop(pattern, {}).values():
            if original is None:
                unknown.append(name)
            else:
                copies[name] = original
        pattern_shapes.pop(pattern, None)
    ignored = tuple(name for name in unknown if table.is_ignored(layout, name))
    left = tuple(name for name in unknown if name not in set(ignored))
    return Binding(table, layout, sizes, found, absent, left, ignored, pattern_shapes, copies)


def _absent(
    table: Table, layout: Layout, found: Names, config: Mapping[str, Any], sizes: AxisSizes
) -> Iterator[str]:
    """Tensors of an axis that has no length, and optional ones that aren't there and needn't be, by
    what config.json says."""
    for tensor, axes in table.tensors.items():
        condition = table.optional.get(tensor)
        if 0 in map(sizes.get, axes) or (
            condition is not None
            and layout.holding(tensor) not in found
            and condition.holds(config)
        ):
            yield tensor


def _learn_offsets(sizes: AxisSizes, layout: Layout, numbered: Names) -> bool:
    """Where config.json doesn't tell the length of an axis that is added to others: those begin
    where their own names do, which are like no other's, else behind the names of the axis itself.
    Whether anything was learnt."""
    skeletons = Counter(pattern.skeleton for pattern in layout.patterns)
    patterns = (*layout.patterns, *layout.copies)
    unknown = {
        offset
        for pattern in patterns
        for offset in pattern.offsets.values()
        if sizes.get(offset) is None
    }
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
    sizes: AxisSizes,
    table: Table,
    layout: Layout,
    numbered: Names,
    config: Mapping[str, Any],
    where: str,
) -> None:
    """The axes of which there may be none: none where no name has one, else as many as config.json
    says, or the names."""
    for axis, expression in table.axes.items():
        if not expression.may_be_none:
            continue
        size = expression.evaluate(config, where)
        if not any(axis in pattern.name_axes for pattern in numbered):
            sizes.learn(axis, 0, "the names, in which there is none")
        elif size is not None:
            sizes.learn(axis, size, f"{where} ({expression.text})")


def _learn_counts(sizes: AxisSizes, found: Mapping[Pattern, Mapping[tuple[int, ...], str]]) -> None:
    """The axes that stand in names: as many as config.json says, else as the highest number in any
    name."""
    highest: dict[str, tuple[int, str]] = {}
    for pattern, names in found.items():
        for index, name in names.items():
            for axis, i in zip(pattern.name_axes, index, strict=True):
                if i >= highest.get(axis, (-1, ""))[0]:
                    highest[axis] = (i, name)
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


def _missing(
    layout: Layout,
    found: Mapping[Pattern, Mapping[tuple[int, ...], str]],
    sizes: AxisSizes,
    absent: frozenset[str],
) -> dict[Pattern, tuple[int, list[str]]]:
    """How many tensors of each pattern aren't there, and the first of them."""
    missing: dict[Pattern, tuple[int, list[str]]] = {}
    for pattern in layout.patterns:
        if set(pattern.tensors) <= absent:
            continue
        present = found.get(pattern, {})
        extents = [sizes.get(axis) for axis in pattern.name_axes]
        if None in extents:
            missing[pattern] = (1, [pattern.template])
            continue
        expected = math.prod(extent or 0 for extent in extents)
        if expected > len(present):
            names = _first_missing(
                pattern, [extent or 0 for extent in extents], present, sizes.lengths
            )
            missing[pattern] = (expected - len(present), names)
    return missing


def _missing_text(
    table: Table,
    layout: Layout,
    missing: Mapping[Pattern, tuple[int, list[str]]],
    unknown: Sequence[str],
    config: Mapping[str, Any],
    where: str,
) -> str:
    """Which tensors a layout needs and what that means: of another model, tied elsewhere, or
    lost."""
    count = sum(number for number, _ in missing.values())
    names = [name for _, names in missing.values() for name in names]
    needed = counted(count, "tensor that", "aren't")
    text = f"layout {layout.name} needs {needed} there:\n{listing(names, total=count)}\n"
    tensors = [tensor for pattern in missing for tensor in pattern.tensors]
    if not set(tensors) <= set(table.optional):
        known = (
            ""
            if config
            else " There is no config.json, which says how many there are of each: give it with "
            f"{option('config')}."
        )
        return f"{text}Add the files that hold them.{known}"
    if heads := of_kind(unknown, HEAD):
        return f"{text}There is {shown(heads[0])} instead, {HEAD.what}. {HEAD.advice}"
    if other := other_task(config):
        return f"{text}{where} says {other}, which isn't a causal language model. {HEAD.advice}"
    keys = dict.fromkeys(table.optional[tensor].met() for tensor in tensors)
    conditions = " and ".join(f"{key} {json.dumps(value)}" for key, value in keys)
    if not config:
        return (
            f"{text}Add the files that hold them. If the model has none, its own config.json says "
            f"so, by {conditions}: it isn't there, give it with {option('config')}."
        )
    return (
        f"{text}Add the files that hold them: by {where} the model has them, as {conditions} "
        "doesn't stand there. Don't put it there for this, it would be another model."
    )


def _first_missing(
    pattern: Pattern,
    extents: list[int],
    present: Mapping[tuple[int, ...], str],
    lengths: Mapping[str, int],
) -> list[str]:
    names: list[str] = []
    # not itertools.product, which holds its ranges in memory
    for flat in range(math.prod(extents)):
        index: tuple[int, ...] = ()
        for extent in reversed(extents):
            flat, i = divmod(flat, extent)
            index = (i, *index)
        if index not in present:
            names.append(pattern.name(dict(zip(pattern.name_axes, index, strict=True)), lengths))
            if len(names) == 100:
                break
    return names
