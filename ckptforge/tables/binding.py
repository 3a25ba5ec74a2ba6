"""Binding: the tensors of a checkpoint, recognised as a layout of a table, or what lacks of it."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import msgspec

from ckptforge.errors import LayoutError, MissingTensorsError, shown
from ckptforge.spelling import option
from ckptforge.tables.axes import Pattern
from ckptforge.tables.model_config import Condition, Config
from ckptforge.tables.names import Names, read_names
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Layout, Table
from ckptforge.tables.unmapped import HEAD, of_kind, other_task
from ckptforge.wording import counted, listing

Shapes = Mapping[str, tuple[int, ...]]


class Binding(msgspec.Struct, frozen=True):
    """A checkpoint read as `layout`: sizes of the axes, stored names by pattern and index, and
    names the table doesn't know; `passed` are names of tensors that pass through unchanged,
    `copies` is the name of each copy → that of the tensor that it should be equal to."""

    table: Table
    layout: Layout
    sizes: AxisSizes
    names: Names
    absent: frozenset[str]
    unknown: tuple[str, ...]
    ignored: tuple[str, ...]
    shapes: dict[Pattern, tuple[int, ...]] = msgspec.field(default_factory=dict)
    copies: dict[str, str] = msgspec.field(default_factory=dict)
    passed: tuple[str, ...] = ()

    def holds(self, tensor: str) -> bool:
        """Whether the model has a logical tensor."""
        return tensor not in self.absent

    @property
    def beside(self) -> tuple[str, ...]:
        """The names of tensors beside the language model: those that pass through unchanged, and
        those of towers."""
        return (*self.passed, *self.stored(self.table.in_towers))

    def stored(self, tensors: Collection[str]) -> list[str]:
        """The names of the tensors that hold some of these logical ones."""
        wanted = frozenset(tensors)
        own = (names for p, names in self.names.items() if not wanted.isdisjoint(p.tensors))
        return [name for names in own for name in names.values()]


def bind(table: Table, layout: Layout, shapes: Shapes, config: Config, where: str) -> Binding:
    """Reads tensors as a layout: all that it needs are there, and names, shapes and config.json
    agree on every axis.

    `where` names the config in messages. Raises `MissingTensorsError` with the tensors that are
    missing, and `LayoutError` with both sides of a contradiction.
    """
    sizes, found, unknown = read_names(table, layout, shapes, config, where)
    absent = frozenset(_absent(table, layout, found, config, sizes))
    if missing := missing_of(layout, found, sizes, absent):
        told = "".join(_fewer(table, found, sizes)) if config else ""
        text = missing_text(table, layout, missing, unknown, config, where)
        raise MissingTensorsError(text + told)
    pattern_shapes = {}
    for pattern, names in found.items():
        pattern_shapes[pattern] = _shape_of(layout, pattern, list(names.values()), shapes)
    firsts = {pattern: next(iter(names.values())) for pattern, names in found.items()}
    sizes.learn_shapes([(p, firsts[p], shape) for p, shape in pattern_shapes.items()])
    copies: dict[str, str] = {}
    for pattern in layout.copies:
        original = found.get(layout.holding(pattern.tensors[0]), {}).get(())
        stored = found.pop(pattern, {}).values()
        if original is None:
            unknown += stored
        else:
            copies |= dict.fromkeys(stored, original)
        pattern_shapes.pop(pattern, None)
    ignored = tuple(name for name in unknown if table.is_ignored(layout, name))
    left = tuple(name for name in unknown if name not in set(ignored))
    known = {name for names in found.values() for name in names.values()} if layout.passed else ()
    passed = [n for n in shapes if layout.passed and layout.passes(n) and n not in known]
    return Binding(
        table=table,
        layout=layout,
        sizes=sizes,
        names=found,
        absent=absent,
        unknown=left,
        ignored=ignored,
        shapes=pattern_shapes,
        copies=copies,
        passed=tuple(passed),
    )


def _shape_of(
    layout: Layout, pattern: Pattern, names: Sequence[str], shapes: Shapes
) -> tuple[int, ...]:
    """The shape of all tensors of a kind. Raises `LayoutError`."""
    first = names[0]
    shape = shapes[first]
    if len(shape) != len(pattern.shape_axes):
        raise LayoutError(
            f"{first} has shape {list(shape)}, but in layout {layout.name} it has "
            f"{counted(len(pattern.shape_axes), 'axis')}.",
            (first,),
        )
    for name in names if len(set(map(shapes.__getitem__, names))) > 1 else ():
        if shapes[name] != shape:
            raise LayoutError(
                f"{name} has shape {list(shapes[name])}, but {first}, of the same kind, has "
                f"{list(shape)}.",
                (name, first),
            )
    return shape


def _absent(
    table: Table, layout: Layout, found: Names, config: Config, sizes: AxisSizes
) -> Iterator[str]:
    """Tensors of an axis without length, optional ones that config.json denies, and those of towers
    of which nothing is there."""
    for tower in table.towers.values():
        if not any(layout.holding(tensor) in found for tensor in tower.tensors):
            yield from tower.tensors
    for tensor, axes in table.tensors.items():
        condition = table.optional.get(tensor)
        met = condition is not None and (
            condition.holds(config) or _switched_off(condition, table, layout, found, config)
        )
        if 0 in map(sizes.get, axes) or (met and layout.holding(tensor) not in found):
            yield tensor


def _switched_off(
    condition: Condition, table: Table, layout: Layout, found: Names, config: Config
) -> bool:
    """Whether a condition is of a switch of MindSpore's, of which config.json says nothing, and
    none of the tensors that it governs is there: some of them are lost, not switched off."""
    if not condition.in_words or layout.family != "mindspore" or condition.key in config:
        return False
    governed = (one for one, other in table.optional.items() if other.key == condition.key)
    return all(layout.holding(tensor) not in found for tensor in governed)


_NAMED = 100  # of each pattern


class Missing(NamedTuple):
    """How many tensors of a pattern aren't there, and the first of them."""

    number: int
    names: list[str]


def missing_of(
    layout: Layout, found: Names, sizes: AxisSizes, absent: frozenset[str]
) -> dict[Pattern, Missing]:
    """The patterns of a layout of which tensors aren't there, but for those of `absent` ones."""
    missing: dict[Pattern, Missing] = {}
    for pattern in layout.patterns:
        if set(pattern.tensors) <= absent:
            continue
        extents = [size for axis in pattern.name_axes if (size := sizes.get(axis)) is not None]
        if len(extents) < len(pattern.name_axes):
            missing[pattern] = Missing(1, [pattern.template])
        elif (lacking := math.prod(extents) - len(found.get(pattern, {}))) > 0:
            lost = (index for index in _indexes(extents) if index not in found.get(pattern, {}))
            axes = pattern.name_axes
            indexes = (dict(zip(axes, index, strict=True)) for index in islice(lost, _NAMED))
            names = [pattern.name(index, sizes.lengths) for index in indexes]
            missing[pattern] = Missing(lacking, names)
    return missing


def _indexes(extents: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """As itertools.product makes them, which holds its ranges in memory."""
    for flat in range(math.prod(extents)):
        index: tuple[int, ...] = ()
        for extent in reversed(extents):
            flat, i = divmod(flat, extent)
            index = (i, *index)
        yield index


def _fewer(table: Table, found: Names, sizes: AxisSizes) -> Iterator[str]:
    """A sentence for each axis of which names have fewer than config.json says, and all of these,
    so that it may be config.json which isn't of this model."""
    highest: dict[str, int] = {}
    for pattern, names in found.items():
        for at, axis in enumerate(pattern.name_axes):
            highest[axis] = max(highest.get(axis, 0), 1 + max(index[at] for index in names))
    for axis, count in highest.items():
        size = sizes.get(axis)
        if size is not None and size > count and axis not in sizes.numbers:
            yield f" {sizes.known[axis][1]} says {size}, and the names of tensors have {count}."


def missing_text(
    table: Table,
    layout: Layout,
    missing: Mapping[Pattern, Missing],
    unknown: Sequence[str],
    config: Config,
    where: str,
) -> str:
    """Which tensors a layout needs: those of another model, tied elsewhere, or lost."""
    count = sum(one.number for one in missing.values())
    names = [name for one in missing.values() for name in one.names]
    needed = counted(count, "tensor that", "aren't")
    text = f"layout {layout.name} needs {needed} there:\n{listing(names, total=count)}\n"
    tensors = [tensor for pattern in missing for tensor in pattern.tensors]
    if not set(tensors) <= set(table.optional):
        text += "Add the files that hold them."
        if not config:
            text += (
                " There is no config.json, which says how many there are of each: give it with "
                f"{option('config')}."
            )
        return text
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
