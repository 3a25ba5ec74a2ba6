"""Trying again: after a fault that may pass, each time twice as long later."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ckptforge.remote.objects import Facts, Objects, Passing

TRIES = 7
_FIRST_PAUSE = 0.2  # seconds; in all about 13, or as long as the service asks for
_LONGEST_PAUSE = 30.0
_PROGRESS = 1 << 16  # bytes after which counting begins again
_log = logging.getLogger(__name__)
T = TypeVar("T")


def patiently(action: Callable[[], T], path: Path) -> T:
    """What an action returns, tried again while its faults may pass. Raises `OSError`."""
    failures = 0
    while True:
        try:
            return action()
        except Passing as fault:
            failures += 1
            _pause(failures, fault, path)


def fetch_all(objects: Objects, path: Path, facts: Facts, start: int, into: memoryview) -> None:
    """Fills a buffer from byte `start` of an object; what has come isn't asked for again. Raises
    `OSError`."""
    done = failures = 0
    while done < len(into):
        fault = Passing("the body was cut off")
        try:
            count = objects.fetch(path, facts, start + done, into[done:])
        except Passing as passing:
            fault, count = passing, passing.done
        done += count
        if done < len(into):
            failures = 1 if count >= _PROGRESS else failures + 1
            _pause(failures, fault, path)


def _pause(failures: int, fault: Passing, path: Path) -> None:
    """Waits before the next try. Raises `OSError` when there have been enough."""
    if failures >= TRIES:
        raise OSError(errno.EIO, f"failed {TRIES} times: {fault}", str(path)) from fault
    pause = _FIRST_PAUSE * 2 ** (failures - 1) * random.uniform(0.75, 1.25)
    _log.info("%s: %s; trying again (%s of %s)", path, fault, failures, TRIES - 1)
    time.sleep(min(max(pause, fault.wait), _LONGEST_PAUSE))
