"""What is known of a checkpoint beside its tensors: what a user says, its manifest, its config."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ckptforge.checkpoints.card import (
    MAX_SMALL_FILE,
    HuggingFaceSide,
    hugging_face_side,
    small_files_of,
)
from ckptforge.checkpoints.huggingface import CONFIG, shard_of
from ckptforge.checkpoints.manifest import Manifest, find_manifest
from ckptforge.errors import ConfigError, MissingTensorsError
from ckptforge.foreign.files import is_there, read_small
from ckptforge.foreign.json import parse_object, read_object
from ckptforge.foreign.paths import is_directory
from ckptforge.model import Model
from ckptforge.tables.layout_choice import Hints
from ckptforge.tables.model_config import language_part
from ckptforge.tables.shipped import candidate_tables, shipped_tables
from ckptforge.tables.table import Table

_log = logging.getLogger(__name__)
_MAX_CONFIG = 16 * 1024 * 1024  # some hold tables of labels


class Choices(msgspec.Struct, frozen=True):
    """What a user says about an input: the model, the layout, a table or a config of their own, the
    step; of rank directories the strategy or the parallel configuration of their job. `family` is
    the one that a verb reads."""

    model: str | None = None
    layout: str | None = None
    mapping: Path | None = None
    config: Path | None = None
    step: int | None = None
    family: str | None = None
    strategy_dir: Path | None = None
    trim_vocab: bool = False
    parallel_config: Path | None = None


def read_model_config(given: Path) -> tuple[Mapping[str, Any], str]:
    """(what a config.json says of the language model, where): of a file, or of the directory that
    holds it. Raises `InputNotFoundError` and `FormatError`."""
    path = given / CONFIG if is_directory(given) else given
    described = read_object(path, _MAX_CONFIG, constants=True)
    part = language_part(described, str(path))
    if any(table.of_the_whole(described) for table in shipped_tables()):
        part = part.of_the_whole(described)
    return part.config, part.where


class Known(msgspec.Struct, frozen=True):
    """What is known of a checkpoint beside its tensors: the tables that may be meant, and hints
    which, with what its config.json says of the language model; `described` is all of that."""

    side: HuggingFaceSide | None
    tables: Sequence[Table]
    hints: Hints
    described: Mapping[str, Any]


def known_of(model: Model, choices: Choices) -> Known:
    """Of a checkpoint, whole or not. Raises what reading its manifest and config raises."""
    path = model.path
    if (shard := shard_of(path)) and not is_directory(path):
        raise MissingTensorsError(f"{path}: {shard}.")
    manifest = find_manifest(path, model.files)
    side, origin = _hugging_face_side(model, manifest, choices.config)
    described, described_in = _config(side, origin)
    if not described and model.described:
        described, described_in = model.described, f"what {model.path} says of itself"
    part = language_part(described, described_in)
    named = choices.model
    if named is None and manifest is not None:
        named = manifest.model
    tables = candidate_tables(choices.mapping, named, described.get("model_type"))
    if any(table.of_the_whole(described) for table in tables):
        part = part.of_the_whole(described)
    else:
        tables = candidate_tables(choices.mapping, named, part.config.get("model_type"))
    trusted = manifest is None or manifest.untouched(model.files)
    if not trusted:
        _log.info(
            "the files aren't the very ones that were written with the manifest: its layout isn't "
            "relied on"
        )
    if choices.model is None and choices.mapping is not None:
        named = tables[0].name
    elif choices.model is None and named not in {table.name for table in tables}:
        named = None
    hints = Hints(
        config=part.config,
        config_source=part.where,
        model=named,
        layout=choices.layout,
        recorded_layout=manifest.layout if trusted and manifest is not None else model.layout,
        family=model.family or choices.family,
    )
    return Known(side, tables, hints, described)


def _hugging_face_side(
    model: Model, manifest: Manifest | None, config: Path | None
) -> tuple[HuggingFaceSide | None, str]:
    """Small files that the model brings along, else from --config, else from the manifest, else
    from beside the weights where a config.json lies; and where their config.json comes from."""
    if model.card is not None:
        return HuggingFaceSide(dict(model.card)), f"{CONFIG} of {model.path}, as it was changed"
    if config is not None:
        if is_directory(config):
            files, skipped = small_files_of(config)
        else:
            files, skipped = {CONFIG: read_small(config, MAX_SMALL_FILE, ConfigError)}, ()
        if CONFIG not in files:
            raise ConfigError(f"{config}: holds no {CONFIG}.")
        own = {name: one for name, one in files.items() if not name.endswith(".index.json")}
        origin = config / CONFIG if is_directory(config) else config
        return HuggingFaceSide(own, skipped=skipped), str(origin)
    if manifest is not None and manifest.hugging_face is not None:
        return manifest.hugging_face, f"{CONFIG} in {manifest.path}"
    if model.derived is not None:
        return HuggingFaceSide(dict(model.derived)), f"{CONFIG} for {model.directory}"
    path, whole = model.directory / CONFIG, model.format == "hugging face directory"
    if is_there(path):
        return hugging_face_side(model.directory, model.files, None, all_files=whole), str(path)
    return None, CONFIG


def _config(side: HuggingFaceSide | None, origin: str) -> tuple[Mapping[str, Any], str]:
    """(config.json as an object, the name of where it comes from); empty where there is none."""
    if side is None or CONFIG not in side.files:
        return {}, CONFIG
    if len(side.files[CONFIG]) > _MAX_CONFIG:
        raise ConfigError(f"{origin}: over {_MAX_CONFIG} bytes, too large for what it should be.")
    return parse_object(side.files[CONFIG], origin, constants=True), origin
