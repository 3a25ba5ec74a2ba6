"""Tied embeddings: models whose config.json says that the head is the embedding, and whose files
hold a head all the same."""

from __future__ import annotations

import msgspec

from ckptforge.formats.entry import TensorEntry
from ckptforge.reading.source import Source
from ckptforge.run.budget import Budget


class Tied(msgspec.Struct, frozen=True):
    """A stored tensor (`stored`), and the one that config.json says is used in its place (`used`),
    by the key that says so."""

    stored: TensorEntry
    used: TensorEntry
    key: str

    @property
    def text(self) -> str:
        """What is to be said where the two differ."""
        return (
            f"config.json ties {self.stored.name} to {self.used.name} ({self.key}), but the files "
            "hold two that differ. Programs that "
            f"trust config.json use {self.used.name} for both: if the head was trained, set "
            f"{self.key} to false in the "
            "output's config.json."
        )

    @property
    def unknown(self) -> str:
        """What is to be said where they weren't compared."""
        return (
            f"config.json ties {self.stored.name} to {self.used.name} ({self.key}), and both "
            "are stored; they weren't compared."
        )


def stored_heads(source: Source) -> dict[str, tuple[TensorEntry, TensorEntry]]:
    """Key of config.json → (the tensor that it makes needless, the one that stands in for it),
    where both are stored by themselves."""
    table, names = source.table, source.binding.names
    held = {
        pattern.tensors[0]: list(indexed.values())
        for pattern, indexed in names.items()
        if len(pattern.tensors) == 1
    }
    found = {}
    for tensor, stand_in in (table.pipeline.tied if table.pipeline is not None else {}).items():
        condition = table.optional.get(tensor)
        if condition is not None and len(held.get(tensor, ())) == len(held.get(stand_in, ())) == 1:
            tensors = source.checkpoint.tensors
            found[condition.met()[0]] = tensors[held[tensor][0]], tensors[held[stand_in][0]]
    return found


def tied(source: Source) -> tuple[Tied, ...]:
    """The tensors of a model that are stored though config.json says that others are used in their
    place."""
    met = {
        condition.met()[0]
        for condition in source.table.optional.values()
        if condition.holds(source.config)
    }
    return tuple(
        Tied(stored, used, key)
        for key, (stored, used) in stored_heads(source).items()
        if key in met
    )


def differing(pairs: tuple[Tied, ...], budget: Budget) -> list[Tied]:
    """Those pairs whose tensors hold something else; reads both."""
    from ckptforge.run.match import unlike  # which needs numpy, inspect mostly doesn't

    comparable = [pair for pair in pairs if pair.stored.extents and pair.used.extents]
    if not comparable:
        return []
    found = unlike([(pair.stored, pair.used) for pair in comparable], budget)
    return [pair for pair in comparable if pair.stored.name in found]


def notes(pairs: tuple[Tied, ...], budget: Budget | None) -> list[str]:
    """A sentence for each pair that differs, or, without a budget or for ranks, wasn't compared."""
    unknown = [
        pair.unknown
        for pair in pairs
        if budget is None or not (pair.stored.extents and pair.used.extents)
    ]
    return unknown + ([] if budget is None else [pair.text for pair in differing(pairs, budget)])
