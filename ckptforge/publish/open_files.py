"""How many files a process may have open, which a job with many ranks needs more of than usual."""

from __future__ import annotations

import resource

from ckptforge.errors import OutputError
from ckptforge.wording import counted


def allow_open_files(count: int) -> None:
    """Raises the process's soft limit of open files to `count` where it is lower. Raises
    `OutputError` where the system doesn't allow it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or count <= soft:
        return
    if hard != resource.RLIM_INFINITY and count > hard:
        raise OutputError(
            f"{counted(count, 'file')} must be open at a time, but the system allows {hard} "
            "(ulimit -Hn); raise that limit."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
