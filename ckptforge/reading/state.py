"""Optimizer state and counters, which follow their weights into another layout."""

from __future__ import annotations

from collections.abc import Sequence

from ckptforge.errors import LayoutError, shown
from ckptforge.model import Account
from ckptforge.reading.source import Source
from ckptforge.tables.convert import convert
from ckptforge.tables.state import companion_prefix
from ckptforge.tables.table import Layout
from ckptforge.values import Value


def state_in(
    source: Source, target: Layout, names: Sequence[str], partly: bool = False
) -> dict[str, Value]:
    """Optimizer state in another layout, as its weights; counters as they are."""
    values, weights = source.model.values, _weights(source)
    found: dict[str, Value] = {}
    for prefix in dict.fromkeys(prefix for name in names if (prefix := companion_prefix(name))):
        found |= convert(source.binding, target, values, None, prefix, partly=partly).values
    for name in names:
        prefix = companion_prefix(name)
        if prefix is None or name.removeprefix(prefix) not in weights:
            found[name] = values[name]
    return found


def followed(source: Source, target: Layout, account: Account) -> tuple[dict[str, Value], Account]:
    """(the state of a model in another layout, the account with what of it is left out: the state
    of weights that aren't written). Raises `LayoutError` for state of another shape than its
    weight's."""
    values, weights = source.model.values, _weights(source)
    kept = []
    for name in source.state:
        prefix = companion_prefix(name)
        weight = values.get(name.removeprefix(prefix or ""))
        if prefix is None:
            kept.append(name)
        elif weight is None:
            account = account.leaving("optimizer state of weights that aren't there", (name,))
        elif name.removeprefix(prefix) not in weights:
            account = account.leaving("optimizer state of tensors that are left out", (name,))
        elif values[name].shape != weight.shape:
            raise LayoutError(
                f"{shown(name)} has shape {list(values[name].shape)}, but its weight "
                f"{shown(name.removeprefix(prefix))} has {list(weight.shape)}."
            )
        else:
            kept.append(name)
    return state_in(source, target, kept), account


def _weights(source: Source) -> set[str]:
    named = {name for names in source.binding.names.values() for name in names.values()}
    return named.union(source.binding.passed)
