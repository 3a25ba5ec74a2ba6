"""Values in memory instead of in a file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.planning.lower import in_memory
from ckptforge.run.casts import numpy_dtype
from ckptforge.run.tasks import tiles_of
from ckptforge.run.worker import Worker
from ckptforge.values import Value


def read_value(name: str, value: Value, worker: Worker) -> NDArray[Any]:
    """A value as an array of its dtype and shape. Raises the errors of reading."""
    assembly = in_memory(name, value)
    out = np.empty(value.nbytes, np.uint8)
    itemsize = value.dtype.itemsize
    for tile in tiles_of(worker.budget, assembly):
        made = worker.assemble(assembly, tile)
        at = 0
        for first, count in tile.runs():
            length = count * itemsize
            out[first * itemsize : first * itemsize + length] = made[at : at + length]
            at += length
    return out.view(numpy_dtype(value.dtype)).reshape(value.shape)
