"""The rules between the keys of a parallel configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptforge.errors import shown
from ckptforge.parallel.device_layout import MAX_DEVICES, MAX_STAGES
from ckptforge.wording import counted

if TYPE_CHECKING:
    from ckptforge.parallel.config_schema import ParallelKeys

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
