"""How much memory a run may use, and how it is shared among workers."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ckptforge.dtypes import DType
from ckptforge.errors import UsageError

DEFAULT_MEMORY = 128 * 1024 * 1024
MIN_MEMORY = 1024 * 1024
_MAX_TILE_BYTES = 16 * 1024 * 1024
# A tile of n elements needs n in the target's dtype, up to 2n as read, gaps included, and n more where they are cast.
READ_FACTOR = 2


@dataclass(frozen=True, slots=True)
class Budget:
    """How many workers, and how many bytes of buffers each has."""

    workers: int
    bytes_each: int

    @classmethod
    def of(cls, workers: int | None, memory: int | None) -> Budget:
        """Defaults: one worker per core up to 8, 128 MiB in all. Raises `UsageError` for less than 1 MiB or no worker."""
        memory = DEFAULT_MEMORY if memory is None else memory
        workers = min(8, os.cpu_count() or 1) if workers is None else workers
        if workers < 1:
            raise UsageError(f"--workers {workers}: at least one is needed.")
        if memory < MIN_MEMORY:
            raise UsageError(f"--memory of {memory} bytes is too little: at least 1 MiB is needed.")
        workers = min(workers, memory // MIN_MEMORY)
        return cls(workers, memory // workers)

    @property
    def total(self) -> int:
        return self.workers * self.bytes_each

    def tile_elements(self, source: DType, target: DType) -> int:
        widest = max(source.itemsize, target.itemsize)
        buffers = READ_FACTOR + 1 + (source != target)
        return max(1, min(self.bytes_each // (buffers * widest), _MAX_TILE_BYTES // widest))
