"""Renaming, dropping and keeping tensors of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from ckptforge.errors import UsageError, shown
from ckptforge.model import Model
from ckptforge.reading.source import Source
from ckptforge.surgery.what import names_of, with_state
from ckptforge.wording import nearest


def rename(model: Model, names: Mapping[str, str] | Callable[[str], str]) -> Model:
    """The model with other names, in the same order: by a mapping from old names to new, in which a
    `*` of the old stands for what the `*` of the new is, or by a function of each name. Raises
    `UsageError` for a name that there isn't, and for two tensors of one name."""
    if isinstance(names, Mapping):
        new = {name: name for name in model.values}
        for old, wanted in names.items():
            new |= _renamed(model, old, wanted)
    else:
        new = {name: names(name) for name in model.values}
    found: dict[str, str] = {}
    for old, name in new.items():
        if name in found:
            raise UsageError(f"{shown(found[name])} and {shown(old)} would both be {shown(name)}.")
        found[name] = old
    return replace(model, values={name: model.values[old] for name, old in found.items()})


def _renamed(model: Model, old: str, new: str) -> dict[str, str]:
    if old in model.values:
        return {old: new}
    if old.count("*") != 1 or new.count("*") != 1:
        near = nearest(old, list(model.values))
        raise UsageError(f"{model.path}: no tensor has the name {shown(old)}.{near}")
    before, after = old.split("*")
    found = {
        name: new.replace("*", name[len(before) : len(name) - len(after)])
        for name in model.values
        if len(name) >= len(before) + len(after)
        and name.startswith(before)
        and name.endswith(after)
    }
    if not found:
        raise UsageError(f"{model.path}: no tensor has a name like {shown(old)}.")
    return found


def drop(model: Model, *what: str, source: Source | None = None) -> Model:
    """The model without some tensors, by kind or glob, and their optimizer state; its account then
    lists them. Raises `UsageError` for what names none."""
    gone = with_state(model, _named(model, source, what))
    if len(gone) == len(model.values):
        raise UsageError(f"{model.path}: nothing would be left.")
    values = {name: value for name, value in model.values.items() if name not in gone}
    account = model.account.leaving("dropped", tuple(gone))
    return replace(model, values=values, account=account)


def keep(model: Model, *what: str, source: Source | None = None) -> Model:
    """The model with only some tensors, by kind or glob, and their optimizer state. Raises
    `UsageError` for what names none."""
    kept = with_state(model, _named(model, source, what))
    gone = tuple(name for name in model.values if name not in kept)
    values = {name: value for name, value in model.values.items() if name in kept}
    return replace(model, values=values, account=model.account.leaving("dropped", gone))


def _named(model: Model, source: Source | None, what: tuple[str, ...]) -> list[str]:
    return [name for one in what for name in names_of(model, source, one)]
