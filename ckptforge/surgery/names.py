"""Renaming, dropping and keeping tensors of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from msgspec.structs import replace

from ckptforge.errors import UsageError, shown
from ckptforge.model import Model
from ckptforge.wording import nearest


def rename(model: Model, names: Mapping[str, str] | Callable[[str], str]) -> Model:
    """The model with other names, in the same order: by a mapping from old names to new, or by a
    function of each name. Raises `UsageError` for a name that there isn't, and for two tensors of
    one name."""
    if isinstance(names, Mapping):
        for name in names:
            _refuse_unknown(model, name)
        new = {name: names.get(name, name) for name in model.values}
    else:
        new = {name: names(name) for name in model.values}
    found: dict[str, str] = {}
    for old, name in new.items():
        if name in found:
            raise UsageError(f"{shown(found[name])} and {shown(old)} would both be {shown(name)}.")
        found[name] = old
    return replace(model, values={name: model.values[old] for name, old in found.items()})


def drop(model: Model, *globs: str) -> Model:
    """The model without the tensors that globs name, which its account then lists. Raises
    `UsageError` for a glob that names none."""
    gone = _named(model, globs)
    values = {name: value for name, value in model.values.items() if name not in gone}
    account = model.account.leaving("dropped", tuple(gone))
    return replace(model, values=values, account=account)


def keep(model: Model, *globs: str) -> Model:
    """The model with only the tensors that globs name. Raises `UsageError` for a glob that names
    none."""
    kept = _named(model, globs)
    gone = tuple(name for name in model.values if name not in kept)
    values = {name: value for name, value in model.values.items() if name in kept}
    return replace(model, values=values, account=model.account.leaving("dropped", gone))


def _named(model: Model, globs: tuple[str, ...]) -> dict[str, None]:
    found: dict[str, None] = {}
    for glob in globs:
        names = [name for name in model.values if fnmatchcase(name, glob)]
        if not names:
            _refuse_unknown(model, glob)
        found |= dict.fromkeys(names)
    return found


def _refuse_unknown(model: Model, name: str) -> None:
    if name not in model.values:
        near = nearest(name, list(model.values))
        raise UsageError(f"{model.path}: no tensor has the name {shown(name)}.{near}")
