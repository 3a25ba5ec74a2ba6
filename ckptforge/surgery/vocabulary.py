"""What lies beside the weights and is of a vocabulary: the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from ckptforge.foreign.json import parse_object
from ckptforge.model import Model
from ckptforge.reading.source import Source
from ckptforge.surgery.rules import tokens_moved

VOCABULARY = "vocab_size"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
_GENERATION = "generation_config.json"


def with_generation(model: Model, tokens: Sequence[int]) -> Model:
    """The model with the new numbers of the tokens that generation_config.json names; with a note
    where some of them aren't kept."""
    card = model.card or {}
    if _GENERATION not in card:
        return model
    said = parse_object(card[_GENERATION], _GENERATION)
    moved, lost = tokens_moved(said, tokens)
    if lost:
        return model.noting(f"{_GENERATION} goes along as it is: {'; '.join(lost)}.")
    if not moved:
        return model
    content = (json.dumps({**said, **moved}, indent=2, ensure_ascii=False) + "\n").encode()
    return replace(model, card={**card, _GENERATION: content})


def tokenizer_notes(
    source: Source, tokens: Sequence[int], moved: Mapping[str, Any]
) -> tuple[str, ...]:
    """Sentences about files that no longer fit a vocabulary made of these tokens of before."""
    before = source.binding.sizes.get(
        next((a for a, one in source.table.axes.items() if one.choices == [VOCABULARY]), "")
    )
    same = list(tokens[: before or 0]) == list(range(min(len(tokens), before or 0)))
    if same and len(tokens) >= (before or 0):
        return ()
    side = source.hugging_face
    held = [name for name in TOKENIZER if side is not None and name in side.files]
    notes = []
    if held:
        what = "have" if len(held) > 1 else "has"
        which = "lost tokens" if same else "tokens by their old numbers"
        notes.append(
            f"{', '.join(held)} {what} {which}: go along as they are, and no longer fit "
            f"{VOCABULARY} {len(tokens)}."
        )
    if moved:
        notes.append(f"config.json: {', '.join(moved)} are the new numbers of those tokens.")
    return tuple(notes)
