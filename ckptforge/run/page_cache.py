"""What a run leaves in the system's page cache. Where it reads and writes more than fits there,
what is done with is dropped, so that what other programs have there stays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from ckptforge.planning.plan import Plan
from ckptforge.storage.address import address
from ckptforge.storage.memory import free_memory
from ckptforge.values import Located

if TYPE_CHECKING:
    from ckptforge.run.worker import Worker

KEPT_BYTES = 256 * 1024 * 1024  # ranks that are written side by side read the same bytes


class Drop(msgspec.Struct, frozen=True):
    """Bytes [first, end) of a tensor that the page cache needn't hold any more."""

    entry: Located
    first: int
    end: int
    nbytes: int = 0

    def do(self, worker: Worker) -> None:
        """Says so."""
        path, files = self.entry.path, worker.files
        reader = files.targets.get(path) or files.source(path)
        for offset, length in self.entry.file_ranges(self.first, self.end - self.first):
            reader.drop_cached(offset, length)


class PageCache:
    """The bytes that were read and written last; `KEPT_BYTES` of them stay."""

    def __init__(self) -> None:
        self._held: dict[Drop, None] = {}
        self._nbytes = 0

    def add(self, entry: Located, first: int, end: int) -> Iterator[Drop]:
        """Bytes of a tensor that is finished. Returns what is to be dropped now."""
        one = Drop(entry, first, end)
        if one in self._held:
            del self._held[one]  # it comes last again
        else:
            self._nbytes += end - first
        self._held[one] = None
        while self._nbytes > KEPT_BYTES:
            oldest = next(iter(self._held))
            del self._held[oldest]
            self._nbytes -= oldest.end - oldest.first
            yield oldest


def exceeds_page_cache(plan: Plan) -> bool:
    """Whether a plan reads and writes more on this machine than memory is free."""
    near = (file.size for file in plan.sources if address(file.path) is None)
    return plan.tensor_bytes + sum(near) > free_memory()
