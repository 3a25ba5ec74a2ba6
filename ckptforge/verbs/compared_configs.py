"""compare, what of config.json makes two checkpoints compute something else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ckptforge.errors import shown
from ckptforge.reading.source import Source
from ckptforge.reading.tied import differing, stored_heads, tied
from ckptforge.run.budget import Budget
from ckptforge.tables.constants import Used, differing_constants

_SAYS_NOTHING = {
    *("torch_dtype", "dtype", "transformers_version", "_name_or_path", "architectures"),
    *("use_cache", "auto_map"),
}
_OF_ADAPTERS = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")


class Differing(NamedTuple):
    """Key → its value in A and in B, and notes of what wasn't compared."""

    constants: dict[str, tuple[Any, Any]]
    notes: list[str]


def of_models(one: Source, other: Source, budget: Budget) -> Differing:
    """What two models of one table compute differently with, by its constants, and by the heads
    that only one of them ties to the embedding."""
    heads = _heads(one, other, budget)
    listed = {constant.name: constant for constant in one.table.constants.listed}
    used = [_used(source) for source in (one, other)]
    defaults = used[0].constants.defaults if used[0] is not None else {}
    if not (names := [*listed, *defaults]):
        return Differing(heads, [])
    if lacking := [side for side, source in (("A", one), ("B", other)) if not source.config]:
        note = (
            f"no config.json is known of {' and '.join(lacking)}, so {', '.join(names[:3])} and "
            "the like weren't compared."
        )
        return Differing(heads, [note])
    values = {n: (c.value(one.config), c.value(other.config)) for n, c in listed.items()}
    found = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
    if used[0] is not None and used[1] is not None:
        found |= differing_constants(used[0], used[1])
    return Differing(found | heads, [])


def _used(source: Source) -> Used | None:
    constants = source.table.constants.of(source.config)
    if constants is None:
        return None
    pipeline = source.table.pipeline
    layers = source.binding.sizes.get(pipeline.layers[0][0]) if pipeline is not None else None
    return Used(constants=constants, config=source.config, layers=layers or 0)


def _heads(one: Source, other: Source, budget: Budget) -> dict[str, tuple[bool, bool]]:
    """Keys of config.json by which one side uses another tensor in place of a stored one that
    differs from it, and the other side doesn't: key → whether it says so in A and in B."""
    ties = [{pair.key: pair for pair in tied(side)} for side in (one, other)]
    return {
        key: (key in ties[0], key in ties[1])
        for key in ties[0].keys() ^ ties[1].keys()
        if all(side.config and key in stored_heads(side) for side in (one, other))
        and differing(tuple(pairs[key] for pairs in ties if key in pairs), budget)
    }


def of_unknown_models(a: Mapping[str, Any], b: Mapping[str, Any]) -> Differing:
    """The configs of unknown models: model types that differ, a note of other keys."""
    if not a and not b:
        return Differing({}, [])
    if not a or not b:
        lacking = "B" if a else "A"
        note = f"no config.json is known of {lacking}, so the configs weren't compared."
        return Differing({}, [note])
    keys = {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)} - _SAYS_NOTHING
    types = {key: (a.get(key), b.get(key)) for key in keys & {"model_type"}}
    if not (rest := sorted(keys - types.keys())):
        return Differing(types, [])
    more = f" and {len(rest) - 8} more" if len(rest) > 8 else ""
    note = (
        f"config.json differs in {', '.join(map(shown, rest[:8]))}{more}; without a mapping it "
        "isn't known which of them change what is computed."
    )
    return Differing(types, [note])


def of_adapters(one: Path, other: Path) -> dict[str, tuple[Any, Any]]:
    """What two PEFT adapters say differently of what their products are multiplied with."""
    from ckptforge.adapters import peft

    if not (peft.is_adapter(one) and peft.is_adapter(other)):
        return {}
    a, b = (peft.read_config(path)[1].content for path in (one, other))
    return {
        key: (a.get(key), b.get(key))
        for key in _OF_ADAPTERS
        if (a.get(key) or None) != (b.get(key) or None)
    }
