"""Averages that are weighted sums, tensor by tensor: linear, and task arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from msgspec.structs import replace

from ckptforge.values import Term, Value


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes one tensor: the inputs' values of one name with their weights, and the value of
    the base that their differences are taken from, if there is one. `kind` is what casts are
    counted by."""

    name: str
    kind: str
    values: tuple[Value, ...]
    weights: tuple[float, ...]
    base: Value | None = None
    scale: float = 1.0


def linear(mix: Mix) -> tuple[Term, ...]:
    """Σ weight · value; with a base: base + scale · Σ weight · (value - base)."""
    if mix.base is None:
        return tuple(weighted(mix.values, mix.weights))
    weights = [mix.scale * weight for weight in mix.weights]
    return tuple(weighted((mix.base, *mix.values), (1 - sum(weights), *weights)))


def weighted(values: Iterable[Value], weights: Sequence[float]) -> Iterable[Term]:
    """The terms of values times weights."""
    for value, weight in zip(values, weights, strict=True):
        for term in value.terms:
            yield replace(term, weight=term.weight * weight)
