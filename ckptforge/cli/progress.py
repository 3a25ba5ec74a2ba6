"""How far a run is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ckptforge.cli.table import shortened
from ckptforge.errors import printable
from ckptforge.wording import size

if TYPE_CHECKING:
    from tqdm import tqdm

EVERY = 30.0  # seconds between two lines in a log; runs that take less have none
_ROOM = 76  # columns that tqdm's own form of a bar needs
_NARROW = "{desc}: {percentage:3.0f}% {n_fmt} {rate_fmt} {remaining}"
_NARROW_FILE = "{desc}: {percentage:3.0f}% {rate_fmt} {remaining}"
_FIGURES = 23  # columns of what stands there beside the name
Progress = Callable[[int, int], None]
Files = Mapping[Path, tuple[int, int]]  # those that are being written: bytes that are done, and all


@contextmanager
def shown(quiet: bool, word: str) -> Iterator[Progress | None]:
    """A `progress(done, total)` function, in bytes, that writes to stderr: a bar on a terminal,
    else lines. None where nothing is to be said. `word` is what is being done: "copying",
    "comparing". Its method `files` is told how far files are."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with closing(Bars(word, sys.stderr)) as bars:
            yield bars
    else:
        yield Lines(word, sys.stderr)


class _Current(NamedTuple):
    """The file that was begun first of those that are being written, how many others there are, and
    its bytes that are done, and all of them."""

    path: Path
    others: int
    done: int
    total: int

    def said(self, name: str) -> str:
        """Its name, with how many others there are."""
        return printable(name) + (f" (+{self.others:,})" if self.others else "")


def _current(begun: Files) -> _Current | None:
    for path, (done, total) in begun.items():
        return _Current(path, len(begun) - 1, done, total)
    return None


class Bars:
    """A bar for the whole, and beneath it one for the file that is being written, if there are
    several: of those that are, the one that was begun first."""

    def __init__(self, word: str, file: IO[str]) -> None:
        # 80 × 24 where the terminal doesn't say, which tqdm takes for 0 × 0 and draws nothing
        terminal = shutil.get_terminal_size()
        self._columns, self._rows, self._file = terminal.columns, terminal.lines, file
        self._whole = self._bar(word, _NARROW)
        self._one: tqdm[Any] | None = None
        self._path: Path | None = None

    def _bar(self, word: str, narrow: str, **more: Any) -> tqdm[Any]:
        from tqdm import tqdm

        return tqdm(
            unit="B",
            unit_scale=True,
            desc=word,
            file=self._file,
            leave=False,
            ncols=self._columns,
            nrows=self._rows,
            bar_format=narrow if self._columns < _ROOM else None,
            **more,
        )

    def __call__(self, done: int, total: int) -> None:
        """Draws the whole."""
        self._whole.total = total
        with suppress(OSError):  # a terminal that was closed stops no run
            self._whole.update(done - self._whole.n)

    def files(self, begun: Files) -> None:
        """Draws the file."""
        found = _current(begun)
        with suppress(OSError):
            if self._one is not None and (found is None or found.path != self._path):
                self._one.close()
                self._one = None
            if found is None:
                return
            narrow = self._columns < _ROOM
            room = self._columns - _FIGURES if narrow else self._columns // 3
            said = shortened(found.said(found.path.stem), room)
            if self._one is None:
                more = {"position": 1, "initial": found.done, "total": found.total}
                self._one, self._path = self._bar(said, _NARROW_FILE, **more), found.path
            self._one.set_description_str(said, refresh=False)
            self._one.update(found.done - self._one.n)

    def close(self) -> None:
        """Removes both."""
        for bar in (self._one, self._whole):
            if bar is not None:
                with suppress(OSError):
                    bar.close()


class Lines:
    """Writes a line about every `EVERY` seconds: `copying: 12.3 GB of 93.4 GB (13 %), 512 MB/s, 2
    min 38 s left; model-00003-of-00019.safetensors: 45 %, 5 s left`.

    The speed is that since the first call, so that what an earlier run had finished doesn't count.
    """

    def __init__(
        self, word: str, file: IO[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.word, self.file, self.clock = word, file, clock
        self.last = clock()
        self.first: tuple[float, int] | None = None
        self.begun: Files = {}

    def files(self, begun: Files) -> None:
        """Notes what is being written, for the next line."""
        self.begun = begun

    def __call__(self, done: int, total: int) -> None:
        """Writes a line, if the last is long enough ago."""
        now = self.clock()
        began, before = self.first = self.first or (now, done)
        if now - self.last < EVERY or done >= total:
            return
        self.last = now
        text = f"{self.word}: {size(done)} of {size(total)} ({100 * done // total} %)"
        speed = (done - before) / (now - began) if now > began and done > before else 0.0
        if speed:
            text += f", {size(round(speed))}/s, {duration((total - done) / speed)} left"
        if (one := _current(self.begun)) is not None:
            text += f"; {one.said(one.path.name)}: {100 * one.done // one.total} %"
            if speed and len(self.begun) == 1:
                text += f", {duration((one.total - one.done) / speed)} left"
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
