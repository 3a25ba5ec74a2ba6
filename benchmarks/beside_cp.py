"""A benchmark whose rows say the time and memory of commands beside those of cp."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.measurement import Measurement, cells, median, show, wall

TITLES = ["command", "GB", "wall s", "min–max", "user + system s", "peak MB", "cp s", "÷ cp"]
Rows = Callable[[Path, float, int], Iterable[Sequence[str]]]


def row(
    name: str, size: int | None, runs: list[Measurement], copies: list[Measurement]
) -> list[str]:
    """What stands under `TITLES`; `size` is what was copied, in bytes."""
    one, other = median(runs, wall), median(copies, wall)
    ratio = f"{one / other:.2f}" if one and other else ""
    copied = "" if size is None else f"{size / 1e9:.2f}"
    return [name, copied, *cells(runs), f"{other or 0:.2f}", ratio]


def main(about: str | None, rows: Rows, gigabytes: float) -> None:
    """Shows the rows for models of so many gigabytes, by default these."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--gigabytes", type=float, default=gigabytes)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ckptforge-benchmark-") as work:
        show(TITLES, rows(Path(work), args.gigabytes, args.repeats))
