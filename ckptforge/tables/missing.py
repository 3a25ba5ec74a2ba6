"""What a layout needs and a checkpoint doesn't have, and what that means."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from ckptforge.errors import shown
from ckptforge.spelling import option
from ckptforge.tables.axes import Pattern
from ckptforge.tables.names import Names
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Layout, Table
from ckptforge.tables.unmapped import HEAD, of_kind, other_task
from ckptforge.wording import counted, listing

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


def missing_text(
    table: Table,
    layout: Layout,
    missing: Mapping[Pattern, Missing],
    unknown: Sequence[str],
    config: Mapping[str, Any],
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
