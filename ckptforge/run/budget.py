"""How much memory a run may use, and how it is shared among workers."""

from __future__ import annotations

import os

import msgspec

from ckptforge.dtypes import DType
from ckptforge.errors import UsageError
from ckptforge.spelling import option

DEFAULT_MEMORY = 128 * 1024 * 1024
MIN_MEMORY = 1024 * 1024
_MIN_BUFFERS = 256 * 1024  # of a worker that holds something else, too
_MAX_TILE_BYTES = 4 * 1024 * 1024
_MAX_TURNED_BYTES = 32 * 1024 * 1024
_MAX_STRIP_BYTES = 6 * 1024 * 1024  # as much as stays in a core's caches, or nearly


class Budget(msgspec.Struct, frozen=True):
    """How many workers, and for each the bytes of its buffers and what it may keep beside. With
    `in_order` files are written from front to back."""

    workers: int
    bytes_each: int
    cached: int = 0
    in_order: bool = False

    @classmethod
    def of(cls, workers: int | None, memory: int | None) -> Budget:
        """Defaults: one worker per core up to 8, 128 MiB in all. Raises `UsageError` for less than
        1 MiB or no worker."""
        memory = DEFAULT_MEMORY if memory is None else memory
        workers = min(8, os.cpu_count() or 1) if workers is None else workers
        if workers < 1:
            raise UsageError(f"{option('workers', workers)}: at least one is needed.")
        if memory < MIN_MEMORY:
            raise UsageError(
                f"{option('memory')} of {memory} bytes is too little: at least 1 MiB is needed."
            )
        workers = min(workers, memory // MIN_MEMORY)
        return cls(workers, memory // workers)

    @property
    def total(self) -> int:
        """Bytes that all workers hold."""
        return self.workers * (self.bytes_each + self.cached)

    def caching(self, cached: int) -> Budget:
        """The budget where each worker keeps so many bytes beside its buffers, with fewer workers
        if need be. Raises `UsageError` where that isn't enough for one."""
        if not cached:
            return self
        workers = min(self.workers, self.total // (cached + _MIN_BUFFERS))
        if not workers:
            raise UsageError(
                f"{option('memory')} of {self.total} bytes is too little: the scales and "
                f"factors of a weight take {cached}, buffers {_MIN_BUFFERS}."
            )
        return Budget(workers, self.total // workers - cached, cached)

    @property
    def halved(self) -> Budget:
        """The budget of tiles where each is held twice, to be compared."""
        return Budget(self.workers, self.bytes_each // 2)

    def tile_elements(self, target: DType, turned: bool, sums: int = 0) -> int:
        """Elements of an output tensor that are made at a time, with `sums` bytes for each beside.
        Where its axes are turned, broad tiles save reading twice; else small ones stay in the
        cache, and powers of two end where blocks of hashes do."""
        limit = self.bytes_each * 3 // 4
        most = min(limit, _MAX_TURNED_BYTES if turned else _MAX_TILE_BYTES)
        elements = max(1, most // (target.itemsize + sums))
        return elements if turned else 1 << (elements.bit_length() - 1)

    def strip_elements(self, source: DType, target: DType, summed: DType | None = None) -> int:
        """Elements of a source, gaps included, that are read at a time: as read, as `summed` with
        what is added, without gaps, and cast."""
        made = source.itemsize if summed is None else 2 * summed.itemsize
        each = source.itemsize + made + target.itemsize
        return max(1, min(self.bytes_each // 4, _MAX_STRIP_BYTES) // each)
