"""The file of a parallel configuration: MindFormers' YAML, or a small file of the same keys."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptforge.errors import ConfigError, FormatError
from ckptforge.foreign.files import read_small
from ckptforge.foreign.json import parse_object
from ckptforge.parallel.config import Counts, Degrees, OptimizerParallel, ParallelConfig, Stages
from ckptforge.parallel.config_keys import read_keys
from ckptforge.parallel.config_rules import check_keys
from ckptforge.parallel.pynative import is_pynative, pynative_config
from ckptforge.tables.sharding import ShardRow

if TYPE_CHECKING:
    from ckptforge.parallel.config_schema import ParallelKeys

_MAX_BYTES = 256 * 1024  # MindFormers' files have under 20 kB
_MAX_NODES = 5_000  # keys and values, those that aliases stand for counted each time


def read_parallel_config(path: Path) -> ParallelConfig:
    """Reads MindFormers' YAML (sections parallel_config, parallel, moe_config, model, or of the
    PyNative trainer parallelism), or a file of only these keys, with or without their sections, as
    YAML or JSON.

    Raises `InputNotFoundError`, and `ConfigError` with the key, its value and what was expected, or
    with the rule between keys that is broken.
    """
    content = read_small(path, _MAX_BYTES, ConfigError)
    try:
        found = _parse(content)
        if is_pynative(found):
            return pynative_config(path, found)
        from ckptforge.parallel.config_schema import ParallelKeys  # which needs pydantic

        keys = read_keys(found, ParallelKeys)
        check_keys(keys)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    return _config(path, keys)


def read_mapping(path: Path) -> Mapping[str, Any]:
    """The keys and values of a small file that people wrote in YAML or JSON. Raises
    `InputNotFoundError` and `ConfigError`."""
    try:
        return _parse(read_small(path, _MAX_BYTES, ConfigError))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _parse(content: bytes) -> Mapping[str, Any]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            "isn't text; expected a parallel configuration in YAML or JSON."
        ) from error
    found = _parse_text(text)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError("expected keys and values, such as 'model_parallel: 8'.")
    return found


def _parse_text(text: str) -> object:
    with suppress(FormatError):
        return parse_object(text.encode(), "")
    from ckptforge.parallel.bounded_yaml import parse_yaml  # not needed for JSON

    try:
        return parse_yaml(text, _MAX_NODES)
    except ValueError as error:
        raise ValueError(f"isn't valid YAML: {error}.") from error


def _config(path: Path, keys: ParallelKeys) -> ParallelConfig:
    return ParallelConfig(
        path=path,
        degrees=Degrees(
            data=keys.data_parallel,
            model=keys.model_parallel,
            expert=keys.expert_parallel,
            pipeline=keys.pipeline_stage,
        ),
        optimizer=OptimizerParallel(
            enabled=keys.enable_parallel_optimizer,
            threshold=keys.parallel_optimizer_threshold,
            shards=keys.optimizer_weight_shard_size,
        ),
        stages=Stages(
            offset=keys.offset, interleave=keys.pp_interleave_num if keys.pipeline_interleave else 1
        ),
        counts=Counts(
            layers=keys.num_layers,
            heads=keys.num_heads,
            kv_heads=keys.n_kv_heads,
            experts=keys.expert_num,
        ),
        flags={"vocab_emb_dp": keys.vocab_emb_dp, "parallel_optimizer": keys.parallel_optimizer},
        shard={tensor: ShardRow(**row.model_dump()) for tensor, row in keys.shard.items()},
    )
