"""The parallel configuration of a job of MindFormers' PyNative trainer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptforge.errors import ConfigError, shown
from ckptforge.parallel.config import Degrees, ParallelConfig, Stages
from ckptforge.parallel.config_keys import read_keys
from ckptforge.parallel.device_layout import MAX_DEVICES, MAX_STAGES
from ckptforge.parallel.mesh import mesh_of

SECTION = "parallelism"
_OWN = ("data_parallel_shard", "tensor_parallel", "pipeline_parallel", "data_parallel_replicate")
_RANGE = re.compile(r"\s*([0-9]{1,6})(?:\s*-\s*([0-9]{1,6}))?\s*")


def is_pynative(content: Mapping[str, Any]) -> bool:
    """Whether a file is of the PyNative trainer, by its section or its keys."""
    return isinstance(content.get(SECTION), dict) or any(key in content for key in _OWN)


def pynative_config(path: Path, content: Mapping[str, Any]) -> ParallelConfig:
    """What such a file says. Raises `ConfigError` for degrees that don't fit, and `ValueError` for
    keys that are wrong."""
    from ckptforge.parallel.pynative_schema import PyNativeKeys

    keys = read_keys(content, PyNativeKeys)
    if keys.data_parallel_shard < 0:
        raise ValueError(
            "data_parallel_shard is -1 or isn't there, which stands for all devices that are left: "
            "write how many that is, as only the launcher of the job knows."
        )
    shard = keys.data_parallel_shard * keys.context_parallel
    mesh = mesh_of(
        path,
        replicate=keys.data_parallel_replicate,
        shard=shard,
        dense=keys.dense_fsdp_shard_size,
        tensor=keys.tensor_parallel,
        expert=keys.expert_parallel,
    )
    stages, parts = keys.pipeline_parallel, keys.pipeline_parallel_interleave_num
    if max(stages, parts) > MAX_STAGES or mesh.devices * stages > MAX_DEVICES:
        raise ValueError(
            f"{mesh.devices} devices × {stages} stages × {parts} parts are more than any job has."
        )
    layers = keys.pipeline_parallel_layers_per_stage
    return ParallelConfig(
        path=path,
        degrees=Degrees(
            data=keys.data_parallel_replicate * shard,
            model=keys.tensor_parallel,
            expert=keys.expert_parallel,
            pipeline=stages,
        ),
        stages=Stages(
            interleave=parts,
            layers=None if layers in (None, "auto") else _stages(path, layers, stages, parts),
        ),
        flags={"vocab_emb_dp": False, "parallel_optimizer": True},
        mesh=mesh,
    )


def _stages(path: Path, layers: Any, stages: int, parts: int) -> tuple[tuple[int, ...], ...]:
    """The layers of each stage. Raises `ConfigError` for texts that say none, or others than there
    are stages and parts."""
    rows = [layers] if isinstance(layers, str) else list(layers)
    if len(rows) != stages:
        raise ConfigError(
            f"{path}: pipeline_parallel_layers_per_stage has {len(rows)} entries, expected one for "
            f"each of {stages} stages."
        )
    found = []
    for row in rows:
        if not isinstance(row, str):
            found.append(tuple(row))
            continue
        ranges = [_RANGE.fullmatch(text) for text in row.split(",")]
        if len(ranges) != parts or not all(ranges):
            raise ConfigError(
                f"{path}: pipeline_parallel_layers_per_stage holds {shown(row)}, expected "
                f"{parts} ranges such as '0-3', joined by commas."
            )
        numbers: list[int] = []
        for match in ranges:
            assert match is not None
            numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
        found.append(tuple(numbers))
    return tuple(found)
