"""`merge`: groups of indexes of an axis become one each, their weighted mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ckptforge.errors import UsageError, shown
from ckptforge.model import Model
from ckptforge.reading.source import Source
from ckptforge.spelling import option
from ckptforge.surgery.along import Along, Entry, Pick
from ckptforge.surgery.edited import axis_of, changed, length_of, rotated
from ckptforge.surgery.layers import layer_axes
from ckptforge.surgery.totals import adds_up_to_nothing

NAME = "merge"
Group = Sequence[int] | Mapping[str, float]  # indexes, or their weights by index


def merge(source: Source, axis: str, groups: Sequence[Group]) -> tuple[Model, list[str]]:
    """(the model with an index for each group of an axis, the mean of what the group holds; what
    config.json can't say of it). Raises `UsageError`."""
    where = option("merge", f"{axis}=…")
    name = axis_of(source.table, axis, source.config)
    if name in layer_axes(source.table):
        raise UsageError(f"{where}: layers aren't averaged.")
    length = length_of(source, name)
    if not groups:
        raise UsageError(f"{where}: leaves nothing of axis {name}.")
    entries = tuple(_entry(group, length, name, where) for group in groups)
    along, wrong = Along(entries=entries), rotated(source, name)
    return changed(source, {name: along}, dict(source.config), wrong, stateful=False)


def _entry(group: Group, length: int, axis: str, where: str) -> Entry:
    weights: dict[int, float] = {}
    pairs = group.items() if isinstance(group, Mapping) else ((index, 1.0) for index in group)
    for key, weight in pairs:
        if not str(key).isdecimal() or not int(key) < length:
            raise UsageError(f"{where}: {shown(key)} isn't an index of axis {axis}, of {length}.")
        weights[int(key)] = float(weight)
    total = math.fsum(weights.values())
    if not weights or not math.isfinite(total) or adds_up_to_nothing(weights.values()):
        why = "its weights add up to 0" if weights else "it holds no index"
        raise UsageError(
            f"{where}: the group {shown(group)} has no mean, as "
            f"{why if math.isfinite(total) else 'not all its weights are finite'}; expected "
            "indexes, or finite weights by index that add up to another number than 0."
        )
    return tuple(Pick(index, weight / total) for index, weight in weights.items())
