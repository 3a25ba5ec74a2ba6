"""The file of a parallel configuration for Megatron's trainers: YAML or JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ckptforge.errors import ConfigError, shown
from ckptforge.megatron.job import LISTED, Job, Layers, spread_layers
from ckptforge.megatron.names import VISION, Stack
from ckptforge.parallel.config_file import read_mapping
from ckptforge.wording import counted

if TYPE_CHECKING:
    from ckptforge.megatron.config_schema import MegatronKeys

LANGUAGE_LISTED, VISION_LISTED = "llm_pp_layers", "vit_pp_layers"


class MegatronConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a job of Megatron's is cut: its degrees, layers in each part of a stage, layers of each
    part where they differ, by the key `listed_by`, those of the vision tower of each part, and
    places at which no layer is."""

    path: Path | None = None
    job: Job = Job()
    part_length: int | None = None
    listed: tuple[int, ...] | None = None
    listed_by: str = LISTED
    vision: tuple[int, ...] | None = None
    idle: tuple[int, ...] = ()

    def spread(self, stacks: Mapping[Stack, int]) -> tuple[Job, dict[Stack, Layers]]:
        """(the job with its parts, where the layers lie of which a model has so many). Raises
        `ConfigError`."""
        where = str(self.path or "the model")
        main = next(count for stack, count in stacks.items() if stack != VISION)
        job = self._with_parts(main, where)
        found = {}
        for stack, count in stacks.items():
            if stack == VISION:
                rest = [0] * (len(job.chunks) - 1)
                listed = [count, *rest] if self.vision is None else self.vision
                found[stack] = spread_layers(job, count, listed, (), where, VISION_LISTED)
            else:
                own = self.listed, self.idle, where, self.listed_by
                found[stack] = spread_layers(job, count, *own)
        if self.vision is not None and VISION not in found:
            raise ConfigError(
                f"{where}: {VISION_LISTED} is for a model with a vision tower, and this one has "
                "none; omit it."
            )
        return job, found

    def _with_parts(self, layers: int, where: str) -> Job:
        job = self.job
        if self.part_length is not None:
            parts, rest = divmod(layers + len(self.idle), self.part_length * job.stages)
            if rest or parts < 2:
                raise ConfigError(
                    f"{where}: num_layers_per_virtual_pipeline_stage is {self.part_length}, which "
                    f"doesn't divide the {layers + len(self.idle)} layers into several parts of "
                    f"{job.stages} stages; choose another, or add places to noop_layers."
                )
            job = msgspec.structs.replace(job, parts=parts)
        return job


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
        stages, listed_by = keys.pipeline_model_parallel_size, LISTED
        vision = _of_parts(VISION_LISTED, keys.vit_pp_layers, stages)
        language = _of_parts(LANGUAGE_LISTED, keys.llm_pp_layers, stages)
        if language is not None:
            if listed is not None:
                raise ValueError(f"has {LISTED} and {LANGUAGE_LISTED}; omit one of them.")
            listed, listed_by = language, LANGUAGE_LISTED
        part_length = keys.num_layers_per_virtual_pipeline_stage
        _check(part_length, listed, listed_by, idle, keys.schedules_method)
        cut = _cut_of_experts(keys)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    v_shaped = keys.schedules_method is not None
    job = Job(
        tensor=keys.tensor_model_parallel_size,
        stages=stages,
        expert=keys.expert_model_parallel_size,
        expert_tensor=cut,
        extended=keys.moe_tp_extend_ep,
        parts=2 if v_shaped else len(language or ()) // stages or 1,
        v_shaped=v_shaped,
    )
    return MegatronConfig(
        path=path,
        job=job,
        part_length=part_length,
        listed=listed,
        listed_by=listed_by,
        vision=vision,
        idle=idle or (),
    )


def _cut_of_experts(keys: MegatronKeys) -> int:
    """Into how many parts the matrices of experts are cut. Raises `ValueError`."""
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
    return cut


def _numbers(key: str, said: Sequence[int] | str | None) -> tuple[int, ...] | None:
    """The numbers that are the value of a key, as a list or as text. Raises `ValueError`."""
    if said is None or isinstance(said, list | tuple):
        return None if said is None else tuple(said)
    words = str(said).split(",")
    if not all(word.strip().isascii() and word.strip().isdigit() for word in words):
        raise ValueError(f"{key} is {shown(said)}, expected numbers joined by commas.")
    return tuple(int(word) for word in words)


def _of_parts(
    key: str, said: list[int] | list[list[int]] | None, stages: int
) -> tuple[int, ...] | None:
    """The layers of each stage, for each of its parts. Raises `ValueError`."""
    if said is None:
        return None
    rows = [row for row in said if isinstance(row, list)] or [[n for n in said if type(n) is int]]
    for row in rows:
        if len(row) != stages:
            raise ValueError(
                f"{key} has {counted(len(row), 'number')}, {', '.join(map(str, row))}, expected "
                f"{stages}, one for each of pipeline_model_parallel_size."
            )
    return tuple(chain.from_iterable(rows))


def _check(
    part_length: int | None,
    listed: tuple[int, ...] | None,
    listed_by: str,
    idle: tuple[int, ...] | None,
    schedule: str | None,
) -> None:
    if listed is not None and (part_length is not None or idle or schedule is not None):
        raise ValueError(
            f"{listed_by} says where each layer is, without idle ones; omit "
            "num_layers_per_virtual_pipeline_stage, noop_layers and schedules_method."
        )
    if schedule is not None and part_length is not None:
        raise ValueError(f"{schedule} has two parts; omit num_layers_per_virtual_pipeline_stage.")
