"""What MindFormers is told of a job's layouts: in graph mode by MindSpore, whose compiler would
have found them, in PyNative mode by hyper_parallel, which isn't on the package index."""

from __future__ import annotations

import sys
import types
from functools import cache
from types import SimpleNamespace
from typing import Any

from mindspore import nn
from mindspore.parallel import strategy

from tests.mindformers_oracle.jobs import Job, Layout, Parameter
from tests.mindformers_oracle.world import current

PHASE = "train"
Area = list[list[int]]
_job = Job(parameters={})


def install() -> None:
    """Stand-ins for what tells layouts. To be called before MindFormers is imported."""
    strategy._NetStrategyInfo._get_layout_handle = staticmethod(
        lambda: SimpleNamespace(
            global_network_layout=lambda: {PHASE: compiled(_job)},
            local_network_layout=lambda: {PHASE: {0: compiled(_job)[current.rank]}},
        )
    )
    for name, members in (
        ("hyper_parallel.core.distributed_checkpoint", (get_current_layout, get_global_layout)),
        ("hyper_parallel.core.dtensor.dtensor", (type("DTensor", (), {}),)),
    ):
        parts = name.split(".")
        for length in range(1, len(parts)):
            package = sys.modules.setdefault(
                ".".join(parts[:length]), types.ModuleType(".".join(parts[:length]))
            )
            package.__path__ = []
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update({member.__name__: member for member in members})


def set_job(job: Job) -> None:
    """The job that is asked for from now on."""
    global _job
    _job = job


def compiled(job: Job) -> dict[int, dict[str, SimpleNamespace]]:
    """rank → parameter → what the compiler reports. It reports no parameter without a layout."""
    return {
        rank: {
            name: SimpleNamespace(
                dev_matrix=list(layout.device_matrix),
                tensor_map=[list(e) if isinstance(e, tuple) else [e] for e in layout.tensor_map],
                tensor_shape=list(parameter.shape),
                tensor_type=parameter.dtype,
                rank_list=list(layout.rank_list),
                opt_weight_shard_size=layout.shard,
            )
            for name, parameter in job.parameters.items()
            if rank in parameter.owners(job.ranks) and (layout := parameter.layout_on(rank))
        }
        for rank in range(job.ranks)
    }


def get_current_layout(cell: nn.Cell) -> dict[str, Any]:
    """hyper_parallel's: rank → parameter of the cell → layout, dtype and whole shape."""
    return {
        str(current.rank): {
            name: as_dtensor(_job.parameters[name], current.rank) for name in cell.parameters_dict()
        }
    }


def get_global_layout(cell: nn.Cell) -> dict[str, Any]:
    """hyper_parallel's: the same of all ranks."""
    merged: dict[str, Any] = {}
    for told in current.world.tell_all(get_current_layout(cell)):
        merged.update(told)
    return merged


def as_dtensor(parameter: Parameter, rank: int) -> dict[str, Any]:
    told: dict[str, Any] = {"type": parameter.dtype, "full_shape": parameter.shape}
    if layout := parameter.layout_on(rank):
        told |= {
            "device_matrix": layout.device_matrix,
            "tensor_map": layout.tensor_map,
            "interleaved_parallel": False,
            "alias_name": layout.alias_name,
            "rank_list": list(layout.rank_list),
        }
    return told


def areas(job: Job, rank: int) -> dict[str, Area]:
    """Which part of each of its parameters a rank holds: bounds for each axis, by MindFormers."""
    from mindformers.checkpoint.reshard import infer_slice_area_by_rank

    found: dict[str, Area] = {}
    for name, parameter in job.parameters.items():
        if rank not in parameter.owners(job.ranks):
            continue
        layout = parameter.layout_on(rank)
        if layout is None:
            found[name] = [[0, size] for size in parameter.shape]
            continue
        matrix, tensor_map = final(layout, parameter.shape)
        position = layout.rank_list.index(rank)
        area = infer_slice_area_by_rank(matrix, tensor_map, position, parameter.shape)
        found[name] = [list(map(int, bounds)) for bounds in area]
    return found


@cache
def final(layout: Layout, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """A layout's device matrix and tensor map after the parallel optimizer, by MindSpore."""
    if not layout.shard:
        return layout.device_matrix, layout.tensor_map
    rank = layout.rank_list[0]
    parameter = Parameter(dtype="Float32", shape=shape, layout=layout)
    job = Job(parameters={"": parameter}, ranks=rank + len(layout.rank_list))
    cell = nn.Cell()
    cell.compile_phase = PHASE
    info = strategy._NetStrategyInfo(cell, {PHASE: compiled(job)}, {PHASE: {}})
    made = info.get_rank_layout(rank)[rank][""][0].to_dict()
    return made["device_matrix"], made["tensor_map"]
