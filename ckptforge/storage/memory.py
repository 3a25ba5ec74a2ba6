"""How much memory this machine has left."""

from __future__ import annotations

from pathlib import Path


def free_memory() -> float:
    """Bytes that /proc/meminfo says are available (proc(5)), or a smaller limit of a control group
    that this process is in (cgroups(7))."""
    found = float("inf")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found = int(line.split()[1]) * 1024
    for line in ("0::/", "0:memory:/", *_lines("/proc/self/cgroup")):  # a container's own is at /
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            file = "memory.limit_in_bytes" if controllers else "memory.max"
            for limit in _lines(f"/sys/fs/cgroup/{controllers}{path}/{file}"):
                if limit.isdecimal():  # else it is "max"
                    found = min(found, int(limit))
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
