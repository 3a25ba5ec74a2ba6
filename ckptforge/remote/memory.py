"""Memory for bytes on their way."""

from __future__ import annotations

import mmap

_LEAST = 1024 * 1024
Memory = bytearray | mmap.mmap


def fresh_memory(nbytes: int) -> Memory:
    """So many zeros, which the system gets back when they go: what malloc gives, it keeps where
    several threads take and give."""
    return mmap.mmap(-1, nbytes) if nbytes >= _LEAST else bytearray(nbytes)
