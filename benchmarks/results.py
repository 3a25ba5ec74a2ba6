"""The runs of one model's commands, in turns, and what is made of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

from benchmarks.commands import Command, synced
from benchmarks.measurement import (
    Measurement,
    cells,
    measure,
    median,
    peak,
    processor,
    succeeded,
    system,
    user,
    wall,
)
from benchmarks.model import bytes_of
from benchmarks.workspace import Workspace

EVERY = 5  # commands between two runs of cp
PEAK_REACH = 200 * 10**6
SPREAD = 1.2  # of medians about the best
TITLES = (
    "model",
    "command",
    "wrote GB",
    "wall s, best",
    "median",
    "÷ cp + sync, best",
    "medians",
    "user + system s, best",
    "÷ cp's",
    "peak MB",
)
SLOPE_TITLES = ("command", "s a GB", "÷ cp + sync", "user + system s a GB", "÷ cp's")
MINDSPORE_TITLES = (
    "model",
    "command",
    "wrote GB",
    "wall s",
    "min–max",
    "user + system s",
    "peak MB",
    "of it in the call s",
    "÷ ckptforge",
)


class Results:
    """The runs of `commands` in a workspace; those that are baselines run before others, not by
    themselves. `bare`: nothing is read or touched before a run."""

    def __init__(self, work: Workspace, commands: Iterable[Command], bare: bool = False) -> None:
        self.bare = bare
        self.work, self.commands = work, {command.name: command for command in commands}
        self.runs: dict[str, list[Measurement]] = {name: [] for name in self.commands}
        self.written: dict[str, int] = {}
        self.model_bytes = 0

    def round(self) -> None:
        """Every command once, its baselines before each few."""
        since: dict[str, int] = {}
        for command in self.commands.values():
            if command.is_baseline:
                continue
            if (
                synced(command.beside) in self.commands
                and since.get(command.beside, 0) % EVERY == 0
            ):
                self._run(self.commands[command.beside])
                self._run(self.commands[synced(command.beside)])
            self._run(command)
            since[command.beside] = since.get(command.beside, 0) + 1

    def _run(self, command: Command) -> None:
        failure = next((why for path in command.inputs if (why := self.work.provide(path))), "")
        self.work.clear()
        before = ((), 0) if self.bare else (command.read(), command.touched())
        run = (
            Measurement(failure=f"no input: {failure}")
            if failure
            else measure(command.line, *before)
        )
        self.runs[command.name].append(run)
        self.model_bytes = bytes_of(*self.work.hub.glob("*.safetensors"))
        self.written.setdefault(command.name, bytes_of(self.work.out))
        self.work.clear()
        print(f"  {command.name}: {' '.join(cells([run]))}", file=sys.stderr, flush=True)

    def seconds(self, name: str) -> float | None:
        """The median; of MindSpore without its imports, which it prints."""
        return median(
            self.runs.get(name, []),
            _call if name in self.commands and self.commands[name].is_mindspore else wall,
        )

    def ratio(self, name: str, beside: str) -> float | None:
        return _ratio(self.seconds(name), self.seconds(beside))

    def best(self, name: str, of: Callable[[Measurement], float] = wall) -> float | None:
        """The least of all runs that succeeded."""
        return min(map(of, succeeded(self.runs.get(name, []))), default=None)

    def rows(self) -> Iterator[list[str]]:
        """Under TITLES."""
        for name, command in self._run_ones():
            written, beside, copied = self.written[name], command.beside, synced(command.beside)
            judged = not command.is_baseline and bool(written)
            reach = command.reach if judged else None
            memory = f"{peak(self.runs[name]) / 1e6:.0f}"
            best = self.best(name)
            if best is None:
                yield [self._head(), name, "", *cells(self.runs[name])]
                continue
            yield [
                self._head(),
                name,
                f"{written / 1e9:.2f}",
                f"{best:#.3g}",
                f"{self.seconds(name) or 0:#.3g}",
                _judged(_ratio(best, self.best(copied)), reach),
                _judged(
                    self.ratio(name, copied),
                    command.reach * SPREAD if judged and command.reach else None,
                ),
                f"{self.best(name, user) or 0:.2f} + {self.best(name, system) or 0:.2f}",
                _judged(
                    _ratio(self.best(name, processor), self.best(beside, processor)),
                    command.processor_reach if judged else None,
                ),
                f"**{memory}**" if peak(self.runs[name]) > PEAK_REACH else memory,
            ]

    def mindspore_rows(self) -> Iterator[list[str]]:
        """Under MINDSPORE_TITLES."""
        for name, command in self._run_ones():
            call = self.seconds(name) if command.is_mindspore else None
            ratio = (
                _judged(self.ratio(name, command.beside), command.reach, least=True)
                if command.is_mindspore
                else ""
            )
            written = f"{self.written[name] / 1e9:.2f}"
            yield [
                self._head(),
                name,
                written,
                *cells(self.runs[name]),
                f"{call:#.3g}" if call else "",
                ratio,
            ]

    def to_json(self) -> Iterator[dict[str, Any]]:
        for name, command in self._run_ones():
            runs = self.runs[name]
            about = {
                "model_bytes": self.model_bytes,
                "command": name,
                "beside": command.beside,
                "written": self.written[name],
            }
            measured = [
                {key: value for key, value in asdict(run).items() if key != "stdout"}
                for run in runs
            ]
            yield {**about, "seconds": self.seconds(name), "peak": peak(runs), "runs": measured}

    def _run_ones(self) -> Iterator[tuple[str, Command]]:
        return ((name, command) for name, command in self.commands.items() if self.runs[name])

    def _head(self) -> str:
        return f"{self.model_bytes / 1e9:.2f} GB"


def slopes(small: Results, large: Results) -> Iterator[list[str]]:
    """Under SLOPE_TITLES: what a GB more takes, start-up apart, by the best runs."""
    gigabytes = (large.model_bytes - small.model_bytes) / 1e9
    if not gigabytes:
        return

    def slope(name: str, of: Callable[[Measurement], float]) -> float | None:
        more, less = large.best(name, of), small.best(name, of)
        return None if more is None or less is None else (more - less) / gigabytes

    for name, command in small.commands.items():
        seconds, work = slope(name, wall), slope(name, processor)
        if seconds is None or work is None or not small.written[name]:
            continue
        yield [
            name,
            f"{seconds:.3f}",
            _judged(_ratio(seconds, slope(synced(command.beside), wall)), None),
            f"{work:.3f}",
            _judged(_ratio(work, slope(command.beside, processor)), None),
        ]


def _ratio(mine: float | None, other: float | None) -> float | None:
    return mine / other if mine and other else None


def _call(run: Measurement) -> float:
    return float(run.stdout.split()[-1])


def _judged(ratio: float | None, reach: float | None, least: bool = False) -> str:
    """The ratio, with what it is to be at most (or at least); bold if it isn't."""
    if ratio is None:
        return "–"
    if reach is None:
        return f"{ratio:.2f}"
    missed = ratio < reach if least else round(ratio, 2) > reach
    return f"{f'**{ratio:.2f}**' if missed else f'{ratio:.2f}'} ({'≥' if least else '≤'} {reach:g})"
