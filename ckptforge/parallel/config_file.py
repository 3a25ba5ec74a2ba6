"""The file of a parallel configuration: MindFormers' YAML, or a small file of the same keys, and
the rules between its keys."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptforge.errors import ConfigError, FormatError, shown
from ckptforge.foreign.files import read_small
from ckptforge.foreign.json import parse_object
from ckptforge.parallel.config import Counts, Degrees, OptimizerParallel, ParallelConfig, Stages
from ckptforge.parallel.config_keys import read_keys
from ckptforge.parallel.device_layout import MAX_DEVICES, MAX_STAGES
from ckptforge.parallel.pynative import is_pynative, pynative_config
from ckptforge.tables.sharding import ShardRow
from ckptforge.wording import counted

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


_DEGREES = ("data_parallel", "model_parallel", "expert_parallel", "pipeline_stage")


def check_keys(keys: ParallelKeys) -> None:
    """Raises `ValueError` with the rule that the keys break."""
    _check_mode(keys)
    if keys.context_parallel != 1:  # whose strategies aren't known
        raise ValueError(
            f"context_parallel {keys.context_parallel} isn't supported; give the job's strategy "
            "files instead."
        )
    for key, heads in (("num_heads", keys.num_heads), ("n_kv_heads", keys.n_kv_heads)):
        if heads is not None and heads % keys.model_parallel:
            raise ValueError(f"model_parallel {keys.model_parallel} does not divide {key} {heads}.")
    given = keys.model_fields_set
    if given.isdisjoint((*_DEGREES, "context_parallel")):  # it is probably another file
        has = ", ".join(key for key in type(keys).model_fields if key in given)
        raise ValueError(
            f"says no degree of parallelism, so it would be a job of 1 rank; it has {has}. Give "
            f"one of {', '.join(_DEGREES)}, in the section parallel_config or without sections."
        )
    stages, parts = keys.pipeline_stage, keys.pp_interleave_num if keys.pipeline_interleave else 1
    if max(stages, parts) > MAX_STAGES:
        raise ValueError(
            f"pipeline_stage {stages} or pp_interleave_num {parts} is more than {MAX_STAGES}."
        )
    devices = keys.data_parallel * keys.model_parallel
    if devices * stages > MAX_DEVICES:
        raise ValueError(
            f"data_parallel {keys.data_parallel} × model_parallel {keys.model_parallel} × "
            f"pipeline_stage {stages} are {devices * stages} devices, more than {MAX_DEVICES}."
        )
    if keys.optimizer_weight_shard_size > devices:
        raise ValueError(
            f"optimizer_weight_shard_size {keys.optimizer_weight_shard_size} is more than the "
            f"{counted(devices, 'device of a stage')}."
        )


def _check_mode(keys: ParallelKeys) -> None:
    """A mode in which the configuration says how weights are cut."""
    mode = keys.parallel_mode.lower() if isinstance(keys.parallel_mode, str) else keys.parallel_mode
    if mode in (1, "semi_auto_parallel"):
        return
    advice = (
        " A job in manual parallel (MindFormers r1.6 and later, for inference) loads the hub's "
        "safetensors by itself and cuts them while it loads: name the Hugging Face directory in "
        "its pretrained_model_dir, and convert nothing."
    )
    raise ValueError(
        f"parallel_mode is {shown(keys.parallel_mode)}; weights are cut by the configuration only "
        f"in mode 1, semi_auto_parallel.{advice if mode == 'manual_parallel' else ''}"
    )
