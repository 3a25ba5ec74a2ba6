"""Tied embeddings: heads that are stored though config.json says they are the embedding."""

from __future__ import annotations

import msgspec

from ckptforge.reading.source import Source
from ckptforge.run.budget import Budget
from ckptforge.values import Value


class Tied(msgspec.Struct, frozen=True, kw_only=True):
    """A stored tensor, `name`, and the one that config.json says is used in its place, `used`, by
    the key that says so; `values` are both."""

    name: str
    used: str
    key: str
    values: tuple[Value, Value]


def stored_heads(source: Source) -> dict[str, Tied]:
    """Key of config.json → the tensor that it would make needless, with the one that would stand
    in for it, where both are stored by themselves."""
    table, names = source.table, source.binding.names
    alone = {p.tensors[0]: found for p, found in names.items() if len(p.tensors) == 1}
    stored = {tensor: list(found.values()) for tensor, found in alone.items()}
    found = {}
    for tensor, stand_in in (table.pipeline.tied if table.pipeline is not None else {}).items():
        condition = table.optional.get(tensor)
        if (
            condition is not None
            and len(stored.get(tensor, ())) == len(stored.get(stand_in, ())) == 1
        ):
            (name,), (used,), key = stored[tensor], stored[stand_in], condition.met()[0]
            values = source.model.values[name], source.model.values[used]
            found[key] = Tied(name=name, used=used, key=key, values=values)
    return found


def tied(source: Source) -> tuple[Tied, ...]:
    """The stored tensors in whose place others are used, by what config.json says."""
    conditions = source.table.optional.values()
    met = {condition.met()[0] for condition in conditions if condition.holds(source.config)}
    return tuple(pair for key, pair in stored_heads(source).items() if key in met)


def differing(pairs: tuple[Tied, ...], budget: Budget) -> list[Tied]:
    """Those pairs whose tensors hold something else; reads both."""
    if not pairs:
        return []
    from ckptforge.examine.differences import unlike  # which needs numpy, inspect mostly doesn't

    found = unlike({(pair.name, pair.used): pair.values for pair in pairs}, budget)
    return [pair for pair in pairs if pair.name in found]


def notes(pairs: tuple[Tied, ...], budget: Budget | None) -> list[str]:
    """A sentence for each pair that differs, or, without a budget, wasn't compared."""
    if budget is None:
        return [
            f"config.json ties {one.name} to {one.used} ({one.key}), and both are stored; they "
            "weren't compared."
            for one in pairs
        ]
    return [
        f"config.json ties {one.name} to {one.used} ({one.key}), but the files hold two that "
        f"differ. Programs that trust config.json use {one.used} for both: if the head was "
        f"trained, set {one.key} to false in the output's config.json."
        for one in differing(pairs, budget)
    ]
