"""Switches of MindSpore's networks that Hugging Face's config.json doesn't have, and by which
tensors are absent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from ckptforge.checkpoints.card import HuggingFaceSide
from ckptforge.checkpoints.huggingface import CONFIG
from ckptforge.foreign.json import file_of
from ckptforge.tables.binding import Binding


def switches_off(binding: Binding, config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Key → the logical tensors of a model that aren't there, as a switch of that name must be off,
    of which its config.json says nothing."""
    table, found = binding.table, dict[str, list[str]]()
    for tensor in (one for one in table.tensors if one in binding.absent):
        condition = table.optional.get(tensor)
        if condition is None or not condition.in_words or condition.holds(config):
            continue
        if 0 not in map(binding.sizes.get, table.tensors[tensor]):
            found.setdefault(condition.key, []).append(tensor)
    return found


def declared(
    side: HuggingFaceSide | None, binding: Binding, config: Mapping[str, Any]
) -> tuple[HuggingFaceSide | None, tuple[str, ...]]:
    """The Hugging Face side of a model with such switches in its config.json, and a sentence about
    each."""
    off = switches_off(binding, config)
    if side is not None and CONFIG in side.files and off:
        content = {**json.loads(side.files[CONFIG]), **dict.fromkeys(off, False)}
        side = replace(side, files={**side.files, CONFIG: file_of(content)})
    return side, tuple(
        f"there is no {' and no '.join(tensors)}, so the network was trained with {key}: False, "
        f"which {CONFIG} gets. Programs that don't know that key make such tensors of their own "
        "and compute something else."
        for key, tensors in off.items()
    )
