"""How far a run is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

from ckptforge.wording import size

EVERY = 30.0  # seconds between two lines in a log; runs that take less have none
Progress = Callable[[int, int], None]


@contextmanager
def shown(quiet: bool, word: str) -> Iterator[Progress | None]:
    """A `progress(done, total)` function, in bytes, that writes to stderr: a bar on a terminal,
    else lines. None where nothing is to be said. `word` is what is being done: "copying",
    "comparing"."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar(word) as progress:
            yield progress
    else:
        yield Lines(word, sys.stderr)


@contextmanager
def _bar(word: str) -> Iterator[Progress]:
    from tqdm import tqdm

    # 80 × 24 where the terminal doesn't say, which tqdm takes for 0 × 0 and draws nothing
    terminal = shutil.get_terminal_size()
    cols, rows = terminal.columns, terminal.lines

    drawn = tqdm(
        unit="B", unit_scale=True, desc=word, file=sys.stderr, leave=False, ncols=cols, nrows=rows
    )

    def progress(done: int, total: int) -> None:
        drawn.total = total
        with suppress(OSError):  # a terminal that was closed stops no run
            drawn.update(done - drawn.n)

    try:
        yield progress
    finally:
        with suppress(OSError):
            drawn.close()


class Lines:
    """Writes a line about every `EVERY` seconds: `copying: 12.3 GB of 93.4 GB (13 %), 512 MB/s, 2
    min 40 s left`.

    The speed is that since the first call, so that what an earlier run had finished doesn't count.
    """

    def __init__(
        self, word: str, file: IO[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.word, self.file, self.clock = word, file, clock
        self.last = clock()
        self.first: tuple[float, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        """Writes a line, if the last is long enough ago."""
        now = self.clock()
        began, before = self.first = self.first or (now, done)
        if now - self.last < EVERY or done >= total:
            return
        self.last = now
        text = f"{self.word}: {size(done)} of {size(total)} ({100 * done // total} %)"
        if now > began and done > before:
            speed = (done - before) / (now - began)
            text += f", {size(round(speed))}/s, {duration((total - done) / speed)} left"
        with suppress(OSError, ValueError):  # a log that is full or closed stops no run
            print(text, file=self.file, flush=True)


def duration(seconds: float) -> str:
    """Seconds as people say them, in two units: "2 min 40 s"."""
    whole = round(seconds)
    days, hours, minutes, rest = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((i for i, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(
        f"{count} {unit}"
        for count, unit in parts[first : first + 2]
        if count or unit == parts[first][1]
    )
