"""`take`: an axis is made of some of its indexes, in any order, also several times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckptforge.errors import UsageError
from ckptforge.model import Model
from ckptforge.reading.source import Source
from ckptforge.spelling import option
from ckptforge.surgery.along import Along, taking
from ckptforge.surgery.edited import axis_of, changed, length_of, rotated
from ckptforge.surgery.layers import by_layer, layer_axes, of_layers
from ckptforge.surgery.lists import Written, parse_list
from ckptforge.surgery.rules import by_layers, tokens_moved, unsaid_of_layers
from ckptforge.surgery.vocabulary import VOCABULARY, tokenizer_notes, with_generation
from ckptforge.tables.binding import Binding

NAME = "take"
_SHORT = 40  # characters of a list that a message repeats
Taken = tuple[Model, list[str]]


def take(source: Source, axis: str, written: Written) -> Taken:
    """(the model with only these indexes of an axis, what config.json can't say of it). Raises
    `UsageError` for indexes that there aren't, and lists that don't fit the model."""
    short = isinstance(written, str) and len(written) <= _SHORT
    where = option("take", f"{axis}={written if short else '…'}")
    name = axis_of(source.table, axis, source.config)
    found = parse_list(written, where)
    if layer_axes(source.table).get(name, ...) is None:
        return _layers(source, _one_list(found, where), where)
    if name in layer_axes(source.table):
        first = next(iter(layer_axes(source.table)))
        raise UsageError(f"{where}: axis {name} counts some of the layers: take {first}, all.")
    length = length_of(source, name)
    if isinstance(found, Mapping) or (found and isinstance(found[0], list)):
        along = Along(entries=by_layer(source.binding, name, found, where))
        lists = [[pick.index for (pick,) in own] for own in along.entries.values()]  # type: ignore[union-attr, misc]
    else:
        lists = [_one_list(found, where)]
        along = Along(entries=taking(lists[0]))
    for own in lists:
        _check(own, length, name, source.binding, where)
    config, wrong, notes = dict(source.config), list[str](), tuple[str, ...]()
    is_vocabulary = source.table.axes[name].choices == [VOCABULARY]
    if is_vocabulary:
        moved, wrong = tokens_moved(config, lists[0])
        config |= moved
        notes = tokenizer_notes(source, lists[0], moved)
    wrong += rotated(source, name)
    model, unsaid = changed(source, {name: along}, config, wrong)
    if is_vocabulary:
        model = with_generation(model, lists[0])
    return model.noting(*notes, *_groups(source, name, lists)), unsaid


def _layers(source: Source, layers: Sequence[int], where: str) -> Taken:
    binding = source.binding
    axis = next(iter(layer_axes(source.table)))
    before = length_of(source, axis)
    _check(layers, before, axis, binding, where)
    config = {**source.config, **by_layers(source.config, layers, before)}
    wrong = list(unsaid_of_layers(source.config, layers, before))
    return changed(source, of_layers(binding, layers, where), config, wrong)


def _one_list(found: Any, where: str) -> list[int]:
    if isinstance(found, Mapping) or (found and isinstance(found[0], list)):
        raise UsageError(f"{where}: one list of indexes is expected, not one for each layer.")
    return list(found)


def _check(indexes: Sequence[int], length: int, axis: str, binding: Binding, where: str) -> None:
    beyond = next((i for i in indexes if not 0 <= i < length), None)
    if beyond is not None:
        raise UsageError(
            f"{where}: index {beyond} is beyond axis {axis}, of {length} (0 to {length - 1})."
        )
    if not indexes and not binding.table.axes[axis].may_be_none:
        raise UsageError(f"{where}: leaves nothing of axis {axis}.")


def _groups(source: Source, axis: str, lists: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """A sentence where experts come into other groups of the router than they were in."""
    groups, length = source.config.get("n_group"), source.binding.sizes.get(axis)
    text = source.table.axes[axis].text
    if not isinstance(groups, int) or groups < 2 or "experts" not in text or not length:
        return ()
    size = length // groups
    for own in lists:
        kept = [index // size for index in own] if size else []
        if len(own) % groups == 0 and kept != [i // (len(own) // groups) for i in range(len(own))]:
            return (
                f"experts come into other groups (n_group {groups}) than they were trained in: the "
                "router chooses groups first, and so other experts than before.",
            )
    return ()
