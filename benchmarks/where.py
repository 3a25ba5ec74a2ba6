"""Where each command spends its time, and how much of it under the interpreter's lock: `python -m
benchmarks.where` (needs py-spy: `pip install py-spy`).

Runs each command on a synthetic Mixtral under py-spy, which looks a hundred times a second what
each thread is doing: once of all threads that run, and once of the one that holds the lock. Threads
that wait, for the disk or for another, aren't counted, except in the share of the lock, which is of
wall time. Looking slows a command down somewhat, so that shares are shown and not seconds.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.commands import Command, commands
from benchmarks.measurement import measure, show, succeeded
from benchmarks.model import sizes_of
from benchmarks.workspace import FORGE, Workspace

RATE = 100  # looks a second
NAMES = (
    "to-ms",
    "to-ms fp16",
    "to-ms gmm",
    "to-ms gmm fp16",
    "to-torch",
    "merge",
    "split",
    "reshard mp8 → mp4",
    "compare",
)
# What a frame, the innermost first, is doing: the first that says something.
KINDS = (
    ("sync", r"\bsync \("),
    ("hash", r"(feed|digest|same|take|close)[^;]* \(.*run/(passing|blocks|source_hashes)\.py"),
    ("cast", r"run/casts\.py"),
    ("transpose", r"run/transpose\.py"),
    ("shift", r"\bcopy_runs \(.*run/buffers\.py"),
    ("sum", r"_sum \(.*run/assembler\.py"),
    ("compare", r"examine/"),
    ("copy by kernel", r"copy_from \(.*storage/"),
    ("read", r"(read_into|begin_read) \(.*storage/"),
    ("write", r"(write|begin_sync|resize) \(.*storage/"),
    ("the rest, and waiting for a turn", r"ckptforge/run/"),
    ("start-up and planning", r""),
)


def kind_of(stack: str) -> str:
    """What a stack is doing, its frames from the outermost to the innermost."""
    frames = stack.split(";")[::-1]
    for frame in frames:
        for kind, pattern in KINDS[:-2]:
            if re.search(pattern, frame):
                return kind
    inside = any(re.search(KINDS[-2][1], frame) for frame in frames)
    return KINDS[-2][0] if inside else KINDS[-1][0]


def looked_at(line: Sequence[str], directory: Path, *options: str) -> Counter[str]:
    """Stack → how often it was seen while a command ran."""
    out = directory / "stacks"
    spy = ["py-spy", "record", "--rate", str(RATE), "--format", "raw", "--output", str(out)]
    subprocess.run([*spy, *options, "--", *line], check=True, capture_output=True)
    found: Counter[str] = Counter()
    for one in out.read_text().splitlines():
        stack, _, count = one.rpartition(" ")
        found[stack] += int(count)
    return found


def average(work: Workspace) -> Command:
    """The mean of a model and itself."""
    both = [str(work.hub)] * 2
    line = [*FORGE, "average", str(work.out), *both, "--weights", "0.5,0.5", "--quiet"]
    return Command("average of 2", line, (work.hub,))


def chosen(work: Workspace) -> Iterator[Command]:
    """The commands that are looked at."""
    found = {command.name: command for command in commands(work, ())}
    yield from (found[name] for name in NAMES)
    yield average(work)


def shares(work: Workspace) -> Iterator[list[str]]:
    """A row for each command: the share of each kind of work in its processor time."""
    for command in chosen(work):
        _prepare(work, command)
        seen: Counter[str] = Counter()
        for stack, count in looked_at(command.line, work.directory).items():
            seen[kind_of(stack)] += count
        total = max(1, sum(seen.values()))
        cells = [f"{100 * seen[kind] / total:.0f}" if seen[kind] else "" for kind, _ in KINDS]
        yield [command.name, *cells]


def under_the_lock(work: Workspace, workers: Sequence[int]) -> Iterator[list[str]]:
    """A row for each command and number of workers: wall and processor time without py-spy, and
    the share of wall time in which a thread held the lock."""
    for command in chosen(work):
        if command.name not in ("to-ms", "to-ms fp16", "to-ms gmm fp16", "merge"):
            continue
        for count in workers:
            line = [*command.line, "--workers", str(count)]
            _prepare(work, command)
            run = measure(line, command.read(), command.touched())
            if not succeeded([run]):
                yield [command.name, str(count), run.failure, "", ""]
                continue
            _prepare(work, command)
            began = os.times().elapsed
            held = sum(looked_at(line, work.directory, "--gil").values())
            wall = os.times().elapsed - began
            taken = f"{run.user:.2f} + {run.system:.2f}"
            share = f"{100 * held / RATE / wall:.0f} %"
            yield [command.name, str(count), f"{run.wall:.2f}", taken, share]


def _prepare(work: Workspace, command: Command) -> None:
    for path in command.inputs:
        if failure := work.provide(path):
            raise SystemExit(f"{path}: {failure}")
    work.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    args = parser.parse_args()
    if shutil.which("py-spy") is None:
        raise SystemExit("py-spy isn't there: pip install py-spy")
    with tempfile.TemporaryDirectory(prefix="ckptforge-benchmark-") as directory:
        work = Workspace(Path(directory), sizes_of(args.gigabytes, False))
        print("Per cent of the processor time:\n")
        show(["command", *(kind for kind, _ in KINDS)], shares(work))
        print("\nThe interpreter's lock:\n")
        titles = ["command", "workers", "wall s", "user + system s", "lock held, of wall time"]
        show(titles, under_the_lock(work, args.workers))


if __name__ == "__main__":
    main()
