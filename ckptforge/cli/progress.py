"""A progress bar in bytes, on terminals only."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def bar(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A `progress(done, total)` function that draws on stderr; None where nobody watches."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    terminal = shutil.get_terminal_size()  # 80 × 24 where the terminal doesn't say, which tqdm takes for 0 × 0 and draws nothing
    cols, rows = terminal.columns, terminal.lines

    shown = tqdm(unit="B", unit_scale=True, desc="copying", file=sys.stderr, leave=False, ncols=cols, nrows=rows)

    def progress(done: int, total: int) -> None:
        shown.total = total
        with suppress(OSError):  # a terminal that was closed stops no run
            shown.update(done - shown.n)

    try:
        yield progress
    finally:
        with suppress(OSError):
            shown.close()
