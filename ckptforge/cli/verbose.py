"""--verbose: what the package logs, on stderr, with the seconds since it began."""

from __future__ import annotations

import logging
import time

from ckptforge.errors import printable


class _Elapsed(logging.Formatter):
    """`[  0.12 s] message`."""

    def __init__(self) -> None:
        super().__init__()
        self.began = time.time()

    def format(self, record: logging.LogRecord) -> str:
        return f"[{max(0.0, record.created - self.began):7.2f} s] {printable(record.getMessage())}"


def log_to_stderr() -> None:
    """Shows everything that is logged under `ckptforge`."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Elapsed())
    logger = logging.getLogger("ckptforge")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
