"""The rules between the keys of a parallel configuration: each a function from the keys to what is
wrong with them, None where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ckptforge.errors import shown
from ckptforge.parallel.device_layout import MAX_DEVICES, MAX_STAGES
from ckptforge.wording import counted

if TYPE_CHECKING:
    from ckptforge.parallel.config_schema import ParallelKeys

_DEGREES = (
    "data_parallel",
    "model_parallel",
    "expert_parallel",
    "pipeline_stage",
    "context_parallel",
)


def mode_cuts_weights(keys: ParallelKeys) -> str | None:
    """A mode in which the configuration says how weights are cut."""
    mode = keys.parallel_mode.lower() if isinstance(keys.parallel_mode, str) else keys.parallel_mode
    if mode in (1, "semi_auto_parallel"):
        return None
    advice = ""
    if mode == "manual_parallel":
        advice = (
            " A job in manual parallel (MindFormers r1.6 and later, for inference) loads the hub's "
            "safetensors by itself and cuts them while it loads: name the Hugging Face directory "
            "in its pretrained_model_dir, and convert nothing."
        )
    return (
        f"parallel_mode is {shown(keys.parallel_mode)}; weights are cut by the configuration only "
        f"in mode 1, semi_auto_parallel.{advice}"
    )


def sequences_stay_whole(keys: ParallelKeys) -> str | None:
    """No context parallelism, whose strategies aren't known."""
    if keys.context_parallel == 1:
        return None
    return (
        f"context_parallel {keys.context_parallel} isn't supported; give the job's strategy files "
        "instead."
    )


def heads_are_divided(keys: ParallelKeys) -> str | None:
    """Each device has as many heads."""
    for key, heads in (("num_heads", keys.num_heads), ("n_kv_heads", keys.n_kv_heads)):
        if heads is not None and heads % keys.model_parallel:
            return f"model_parallel {keys.model_parallel} does not divide {key} {heads}."
    return None


def a_degree_is_given(keys: ParallelKeys) -> str | None:
    """At least one degree of parallelism, as else the file is probably another one."""
    if keys.model_fields_set & {*_DEGREES}:
        return None
    has = [key for key in type(keys).model_fields if key in keys.model_fields_set]
    return (
        f"says no degree of parallelism, so it would be a job of 1 rank; it has {', '.join(has)}. "
        f"Give one of {', '.join(_DEGREES[:-1])}, in the section parallel_config or without "
        "sections."
    )


def stages_are_few(keys: ParallelKeys) -> str | None:
    """No more stages and parts of them than any job has."""
    stages, parts = keys.pipeline_stage, keys.pp_interleave_num if keys.pipeline_interleave else 1
    if max(stages, parts) <= MAX_STAGES:
        return None
    return f"pipeline_stage {stages} or pp_interleave_num {parts} is more than {MAX_STAGES}."


def devices_are_few(keys: ParallelKeys) -> str | None:
    """No more devices than any job has."""
    devices = keys.data_parallel * keys.model_parallel * keys.pipeline_stage
    if devices <= MAX_DEVICES:
        return None
    return (
        f"data_parallel {keys.data_parallel} × model_parallel {keys.model_parallel} × "
        f"pipeline_stage {keys.pipeline_stage} are {devices} devices, more than {MAX_DEVICES}."
    )


def optimizer_shards_fit_a_stage(keys: ParallelKeys) -> str | None:
    """No more parts by optimizer parallelism than a stage has devices."""
    devices = keys.data_parallel * keys.model_parallel
    if keys.optimizer_weight_shard_size <= devices:
        return None
    return (
        f"optimizer_weight_shard_size {keys.optimizer_weight_shard_size} is more than the "
        f"{counted(devices, 'device of a stage')}."
    )


RULES: tuple[Callable[[ParallelKeys], str | None], ...] = (
    mode_cuts_weights,
    sequences_stay_whole,
    heads_are_divided,
    a_degree_is_given,
    stages_are_few,
    devices_are_few,
    optimizer_shards_fit_a_stage,
)
