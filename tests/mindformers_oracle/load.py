"""A checkpoint loaded by MindFormers into the ranks of a job."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tests.mindformers_oracle import layouts
from tests.mindformers_oracle.cells import UNTOUCHED, Sides
from tests.mindformers_oracle.jobs import Job, bits
from tests.mindformers_oracle.world import World


def load(path: str, job: Job, out: str) -> list[dict[str, layouts.Area]]:
    """Writes `<out>/<rank>.npz`, the bits of each parameter that something was loaded into, and
    gives for each rank which part of it that is."""
    checkpoint = import_module("mindformers.checkpoint.checkpoint")
    layouts.set_job(job)

    def load_rank(rank: int) -> dict[str, Any]:
        areas = layouts.areas(job, rank)
        sides = Sides(job, rank, areas, filled=False)
        checkpoint.load_checkpoint(path, sides.network, sides.optimizer_of(job))
        found = {}
        for name in areas:
            array = bits(sides.optimizer.parameters_dict()[name].asnumpy())
            if (array.reshape(-1).view(np.uint8) != UNTOUCHED).any():
                found[name] = array
        np.savez(Path(out) / f"{rank}.npz", **found)
        return {name: areas[name] for name in found}

    return World(job.ranks).run(load_rank)
