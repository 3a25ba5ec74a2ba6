"""The file of a parallel configuration for Megatron's trainers: YAML or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from ckptforge.errors import ConfigError, shown
from ckptforge.megatron.job import Job, Layers, spread_layers
from ckptforge.parallel.config_file import read_mapping


class MegatronConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a job of Megatron's is cut: its degrees, layers in each part of a stage, layers of each
    stage where they differ, and places at which no layer is."""

    path: Path | None = None
    job: Job = Job()
    part_length: int | None = None
    listed: tuple[int, ...] | None = None
    idle: tuple[int, ...] = ()

    def for_layers(self, layers: int) -> tuple[Job, Layers]:
        """(the job with its parts, where a model's layers lie). Raises `ConfigError`."""
        where, job = str(self.path or "the model"), self.job
        if self.part_length is not None:
            parts, rest = divmod(layers + len(self.idle), self.part_length * job.stages)
            if rest or parts < 2:
                raise ConfigError(
                    f"{where}: num_layers_per_virtual_pipeline_stage is {self.part_length}, which "
                    f"doesn't divide the {layers + len(self.idle)} layers into several parts of "
                    f"{job.stages} stages; choose another, or add places to noop_layers."
                )
            job = msgspec.structs.replace(job, parts=parts)
        return job, spread_layers(job, layers, self.listed, self.idle, where)


def read_megatron_config(path: Path) -> MegatronConfig:
    """Raises `InputNotFoundError`, and `ConfigError` with the key and what is wrong."""
    from ckptforge.megatron.config_schema import MegatronKeys
    from ckptforge.validation import validate

    def spell_place(place: tuple[str | int, ...]) -> str:
        return ".".join(map(str, place))

    found = read_mapping(path)
    try:
        keys = validate(MegatronKeys, found, spell_place)
        listed = _numbers("num_layer_list", keys.num_layer_list)
        idle = _numbers("noop_layers", keys.noop_layers)
        _check(keys.num_layers_per_virtual_pipeline_stage, listed, idle, keys.schedules_method)
        tensor, expert = keys.tensor_model_parallel_size, keys.expert_model_parallel_size
        cut = keys.expert_tensor_parallel_size or tensor
        if cut not in (1, tensor) or (cut != tensor and tensor % expert and expert % tensor):
            raise ValueError(
                f"expert_tensor_parallel_size is {cut}, expected 1 or {tensor}; with 1 one of "
                f"tensor_model_parallel_size {tensor} and expert_model_parallel_size {expert} "
                "divides the other."
            )
        if cut != tensor and keys.moe_tp_extend_ep:
            raise ValueError(
                "moe_tp_extend_ep isn't for expert_tensor_parallel_size 1; omit one of them."
            )
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    v_shaped = keys.schedules_method is not None
    job = Job(
        tensor=tensor,
        stages=keys.pipeline_model_parallel_size,
        expert=expert,
        expert_tensor=cut,
        extended=keys.moe_tp_extend_ep,
        parts=2 if v_shaped else 1,
        v_shaped=v_shaped,
    )
    return MegatronConfig(
        path=path,
        job=job,
        part_length=keys.num_layers_per_virtual_pipeline_stage,
        listed=listed,
        idle=idle or (),
    )


def _numbers(key: str, said: Sequence[int] | str | None) -> tuple[int, ...] | None:
    """The numbers that are the value of a key, as a list or as text. Raises `ValueError`."""
    if said is None or isinstance(said, list | tuple):
        return None if said is None else tuple(said)
    words = str(said).split(",")
    if not all(word.strip().isascii() and word.strip().isdigit() for word in words):
        raise ValueError(f"{key} is {shown(said)}, expected numbers joined by commas.")
    return tuple(int(word) for word in words)


def _check(
    part_length: int | None,
    listed: tuple[int, ...] | None,
    idle: tuple[int, ...] | None,
    schedule: str | None,
) -> None:
    if listed is not None and (part_length is not None or idle or schedule is not None):
        raise ValueError(
            "num_layer_list is for stages of one part without idle layers; omit "
            "num_layers_per_virtual_pipeline_stage, noop_layers and schedules_method."
        )
    if schedule is not None and part_length is not None:
        raise ValueError(f"{schedule} has two parts; omit num_layers_per_virtual_pipeline_stage.")
