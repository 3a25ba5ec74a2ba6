"""A checkpoint under the names of a layout, where its own have something before them, and its
config.json: the part that is of the language model, with switches of MindSpore's networks that
Hugging Face's doesn't have and by which tensors are absent."""

from __future__ import annotations

import json
from typing import Any

from msgspec.structs import replace

from ckptforge.checkpoints.card import HuggingFaceSide
from ckptforge.checkpoints.huggingface import CONFIG, INDEX
from ckptforge.errors import shown
from ckptforge.foreign.json import file_of, parse_object
from ckptforge.model import Model
from ckptforge.spelling import option
from ckptforge.tables.binding import Binding
from ckptforge.tables.model_config import Config, classes_of, language_part
from ckptforge.tables.prefixes import Renaming
from ckptforge.tables.state import is_state
from ckptforge.tables.table import Layout, Table

_OF_OTHER_PARTS = tuple(f"{start}processor_config.json" for start in ("", "pre", "video_pre"))


def renamed(model: Model, renaming: Renaming) -> Model:
    """The model with its tensors under the layout's names; each is stored under its own."""
    names = {**renaming.of_state(filter(is_state, model.values)), **renaming.names}
    values = {names.get(name, name): value for name, value in model.values.items()}
    return replace(model, values=values).noting(f"{model.path}: {renaming.said}.")


def side_renamed(side: HuggingFaceSide, renaming: Renaming) -> HuggingFaceSide:
    """What is kept for the way back, which writes the layout's names."""
    shards = {}
    for file, shard in side.shards.items():
        tensors = {renaming.names.get(n, n): dtype for n, dtype in shard["tensors"].items()}
        shards[file] = {**shard, "tensors": tensors}
    files = {name: content for name, content in side.files.items() if name != INDEX}
    return replace(side, shards=shards, files=files)


def language_side(side: HuggingFaceSide, table: Table) -> tuple[HuggingFaceSide, tuple[str, ...]]:
    """What is kept beside a language model that was taken out of a larger one, and a sentence about
    it: a config.json of the language model alone where it is of a type that the table is for, else
    none."""
    if CONFIG not in side.files:
        return side, ()
    whole = parse_object(side.files[CONFIG], CONFIG, constants=True)
    part = language_part(whole, CONFIG)
    if (not part.beside and part.where == CONFIG) or table.of_the_whole(whole):
        return side, ()
    others = (CONFIG, INDEX, *_OF_OTHER_PARTS)
    files = {name: content for name, content in side.files.items() if name not in others}
    more = ", ".join(part.beside) or part.where
    described = f"{CONFIG} describes more than the language model ({more})"
    if part.config.get("model_type") not in table.model_types:
        model_type = shown(part.config.get("model_type"))
        note = (
            f"{described} and isn't kept, as its model_type {model_type} isn't one of "
            f"{table.name}: give the language model's own with {option('config')} where one is "
            "needed."
        )
        return replace(side, files=files), (note,)
    own = file_of(_of_language_model(part.config, table))
    return replace(side, files={**files, CONFIG: own}), (
        f"{described}: what is kept for the way back is the config.json of the language model "
        "alone.",
    )


def with_config_of(side: HuggingFaceSide, layout: Layout) -> HuggingFaceSide:
    """What goes along, with a config.json that has what the layout's models have, too."""
    if CONFIG not in side.files:
        return side
    own = json.loads(side.files[CONFIG])
    content = (json.dumps({**layout.config, **own}, indent=2) + "\n").encode()
    return replace(side, files={**side.files, CONFIG: content})


def _of_language_model(config: Config, table: Table) -> dict[str, Any]:
    """A language model's config.json, with the class that the table's example has."""
    classes = [name for name in classes_of(config) if name.endswith("ForCausalLM")]
    if not classes and config.get("model_type") == table.example.get("model_type"):
        classes = table.example.get("architectures", [])
    kept = {key: value for key, value in config.items() if key != "architectures"}
    return {**({"architectures": classes} if classes else {}), **kept}


def switches_off(binding: Binding, config: Config) -> dict[str, list[str]]:
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
    side: HuggingFaceSide | None, binding: Binding, config: Config
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
