"""One tensor of a plan in memory instead of in a file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.planning.plan import Assembly
from ckptforge.run.tasks import Fill, fills
from ckptforge.run.worker import Worker


def read_assembly(assembly: Assembly, worker: Worker) -> NDArray[Any]:
    """The bytes of a tensor as its assembly makes them, row-major. Raises the errors of reading."""
    target = assembly.target
    out = np.empty(target.nbytes, np.uint8)
    for task in fills([assembly], worker.budget):
        assert isinstance(task, Fill)
        (made,) = worker.assemble(task)
        at = 0
        for first, count in task.tile.runs():
            length = count * target.dtype.itemsize
            start = first * target.dtype.itemsize
            out[start : start + length] = made[at : at + length]
            at += length
    return out
