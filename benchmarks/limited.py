"""A model larger than memory: `python -m benchmarks.limited [--gigabytes 6 --limit 2]`, as root.

Each command runs in a control group whose memory, page cache included, is limited to so many GB,
in turns with `cp` and a sync of the files it wrote. What is read isn't in the page cache. Shown are
wall time, processor time, the bytes that came from the disk and what `cp` took.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.commands import MODEL, Command, baselines, commands, synced
from benchmarks.measurement import Measurement, measure, median, processor, show, wall
from benchmarks.model import bytes_of, files_of, sizes_of
from benchmarks.workspace import Workspace

TITLES = ["command", "read GB", "from the disk GB", "wall s", "÷ cp + sync", "processor s"]
NAMES = ("to-ms", "to-ms fp16", "to-ms gmm fp16", "to-torch", "split")


@contextmanager
def control_group(nbytes: int) -> Iterator[Path]:
    """A control group that may use so much memory (cgroups(7), version 1 or 2): the file to which
    a process writes its number to be in it."""
    old = Path("/sys/fs/cgroup/memory")
    group = (old if old.is_dir() else old.parent) / f"ckptforge-{os.getpid()}"
    group.mkdir()
    try:
        limit = "memory.limit_in_bytes" if old.is_dir() else "memory.max"
        (group / limit).write_text(str(nbytes))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def limited(line: Sequence[str], group: Path) -> list[str]:
    """A command line that runs in a control group."""
    return ["sh", "-c", f'echo $$ > {group} && exec "$@"', "sh", *line]


def forget(*paths: Path) -> None:
    """Takes files out of the page cache."""
    for path in files_of(*paths):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rows(work: Workspace, limit: int, repeats: int, options: Sequence[str]) -> Iterator[list[str]]:
    """A row for each command, after its `cp`."""
    chosen = [one for one in commands(work, options) if one.name in NAMES]
    every = [*baselines(work), *chosen]
    every = [one for one in every if one.name in (synced(MODEL), *NAMES)]
    runs: dict[str, list[Measurement]] = {one.name: [] for one in every}
    with control_group(limit) as group:
        for _ in range(repeats):
            for command in every:
                _run(work, command, group, runs[command.name])
    copies = median(runs[synced(MODEL)], wall)
    for command in every:
        own = runs[command.name]
        one = median(own, wall)
        if one is None or copies is None:
            yield [command.name, "", "", own[-1].failure[:200], "", ""]
            continue
        disk = median(own, lambda run: run.disk_read) or 0
        yield [
            command.name,
            f"{bytes_of(*command.inputs[:1]) / 1e9:.2f}",
            f"{disk / 1e9:.2f}",
            f"{one:.1f} ({min(run.wall for run in own):.1f}–{max(run.wall for run in own):.1f})",
            f"{one / copies:.2f}",
            f"{median(own, processor):.2f}",
        ]


def _run(work: Workspace, command: Command, group: Path, runs: list[Measurement]) -> None:
    for path in command.inputs:
        if failure := work.provide(path):
            raise SystemExit(f"{path}: {failure}")
    work.clear()
    forget(*command.inputs)
    runs.append(measure(limited(command.line, group)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--limit", type=float, default=2.0, help="GB of memory")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--directory", help="where the temporary files go")
    parser.add_argument("--io", help="handed to every command")
    args = parser.parse_args()
    options = ["--io", args.io] if args.io else []
    with tempfile.TemporaryDirectory(dir=args.directory, prefix="ckptforge-benchmark-") as made:
        work = Workspace(Path(made), sizes_of(args.gigabytes, False))
        show(TITLES, rows(work, round(args.limit * 1e9), args.repeats, options))


if __name__ == "__main__":
    main()
