"""The command line: stdout carries the result, stderr everything else."""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    """Runs the command line, with what must be set before anything heavy is imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its waiting threads spin
    # plans hold many things and hardly a cycle: looking for those took a seventh of the time
    gc.set_threshold(1_000_000, 20, 20)
    try:
        from ckptforge.cli.entry import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


__all__ = ["main"]
