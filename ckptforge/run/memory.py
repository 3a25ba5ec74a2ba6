"""Memory from the system, which begins with a page."""

from __future__ import annotations

import mmap


def fresh_memory(nbytes: int) -> memoryview:
    """So many bytes, in large pages where the system has some: columns of a transposition lie in
    many."""
    fresh = mmap.mmap(-1, nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        fresh.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(fresh)
