"""A checkpoint saved by MindFormers as its trainers save it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tests.mindformers_oracle import layouts
from tests.mindformers_oracle.cells import Sides
from tests.mindformers_oracle.jobs import Job
from tests.mindformers_oracle.world import World


def save(root: str, job: Job, *, remove_redundancy: bool, iteration: int, prefix: Any) -> None:
    """Each rank's part of the job's tensors, as `CheckpointMonitor` and PyNative's
    `CheckpointCallback` have it saved."""
    checkpoint = import_module("mindformers.checkpoint.checkpoint")
    layouts.set_job(job)

    def save_rank(rank: int) -> None:
        sides = Sides(job, rank, layouts.areas(job, rank), filled=True)
        optimizer = sides.optimizer_of(job)
        common = checkpoint.CommonInfo()
        common.step_num = common.global_step = iteration
        checkpoint.save_checkpoint(
            iteration=iteration,
            network=sides.network,
            optimizer=optimizer,
            common_info=common,
            user_prefix=prefix,
            save_checkpoint_path=root,
            remove_redundancy=remove_redundancy,
            **(described(job, sides, optimizer) if job.ranks > 1 else {}),
        )

    World(job.ranks).run(save_rank)


def described(job: Job, sides: Sides, optimizer: Any) -> dict[str, Any]:
    """What the trainers find out of all ranks' tensors, and hand over."""
    found = import_module("mindformers.checkpoint.sharded_tensor")
    cells = [sides.network] if optimizer is None else [sides.network, optimizer]
    if not hasattr(found, "get_all_sharded_tensor_on_rank0"):  # up to 2.0
        of = cells if job.pynative else sides.network
        return {"sharded_tensor_metas": found.get_all_sharded_tensor(of)}
    if not job.pynative:
        metas = found.get_all_sharded_tensor_on_rank0(
            network=sides.network, optimizer=optimizer, saved_cells=[sides.network, optimizer]
        )
        return {"sharded_tensor_metas": metas}
    utils = import_module("mindformers.checkpoint.utils")
    return {
        "sharded_tensor_metas": found.get_all_sharded_tensor_on_rank0(network=cells),
        "global_model_keys": utils.gather_param_names_on_rank0(sides.network.parameters_dict()),
    }
