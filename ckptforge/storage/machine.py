"""Which machine this is, and how it lays out memory."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

PAGE = 4096  # bytes of memory; a multiple of what O_DIRECT asks of offsets, lengths and addresses


@cache
def this_machine() -> str:
    """What tells this machine, since it was started, from others: all processes that have it write
    through one cache of the system. Of a system that doesn't say it, this process's own."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    return f"{socket.gethostname()} {os.getpid()}"
