"""What a command took, measured from outside."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ckptforge

LAUNCHER = Path(__file__).with_name("launcher.py")
SPARE_BYTES = 10**9


@dataclass(frozen=True)
class Measurement:
    """One run: seconds, the peak resident bytes of its largest process, bytes read from the disk.
    `failure` says why it has none."""

    wall: float = 0.0
    user: float = 0.0
    system: float = 0.0
    peak: int = 0
    disk_read: int = 0
    stdout: str = ""
    failure: str = ""


def measure(command: Sequence[str], reads: Iterable[Path] = (), touch: int = 0) -> Measurement:
    """Runs a command with the files it reads in the page cache and, as far as there is room,
    `touch` bytes of memory at hand."""
    files = [str(path) for path in reads]
    room = available_bytes() - sum(os.path.getsize(path) for path in files) - SPARE_BYTES
    with tempfile.TemporaryDirectory(prefix="ckptforge-benchmark-") as directory:
        result, out, err = (Path(directory) / name for name in ("result", "out", "err"))
        launcher = [
            sys.executable,
            "-I",
            "-S",
            str(LAUNCHER),
            str(result),
            str(max(0, min(touch, room))),
            *files,
            "--",
            *command,
        ]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            subprocess.run(launcher, stdout=stdout, stderr=stderr, env=_environment(), check=False)
        if not result.exists():
            return Measurement(failure=_last_line(err) or "the launcher was stopped")
        code, wall, user, system, peak, disk_read = result.read_text().split()
        if code != "0":
            return Measurement(failure=f"exit code {code}: {_last_line(err) or _last_line(out)}")
        text = out.read_text(errors="replace")
        return Measurement(float(wall), float(user), float(system), int(peak), int(disk_read), text)


def available_bytes() -> int:
    """Memory that could be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 0


def _environment() -> dict[str, str]:
    """That of an install: bytecode is kept, and the package is the one imported here."""
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    return {**environment, "PYTHONPATH": str(Path(ckptforge.__file__).parents[1])}


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def succeeded(runs: Iterable[Measurement]) -> list[Measurement]:
    return [run for run in runs if not run.failure]


def median(runs: Iterable[Measurement], of: Callable[[Measurement], float]) -> float | None:
    """None where no run succeeded."""
    values = [of(run) for run in succeeded(runs)]
    return statistics.median(values) if values else None


def wall(run: Measurement) -> float:
    return run.wall


def user(run: Measurement) -> float:
    return run.user


def system(run: Measurement) -> float:
    return run.system


def processor(run: Measurement) -> float:
    return run.user + run.system


def cells(runs: Sequence[Measurement]) -> list[str]:
    """Wall, min–max, user + system, peak of a command's runs, for a table; the reason where one
    failed."""
    done = succeeded(runs)
    if not done:
        return [f"failed: {next((run.failure for run in runs), 'not run')[:200]}", "", "", ""]
    lost = f" ({len(runs) - len(done)} failed)" if len(done) < len(runs) else ""
    user, system = median(done, lambda run: run.user), median(done, lambda run: run.system)
    spread = f"{min(run.wall for run in done):#.3g}–{max(run.wall for run in done):#.3g}"
    return [
        f"{median(done, wall):#.3g}{lost}",
        spread,
        f"{user:.2f} + {system:.2f}",
        f"{peak(done) / 1e6:.0f}",
    ]


def peak(runs: Iterable[Measurement]) -> int:
    """The largest of all runs: a bound must hold for each."""
    return max((run.peak for run in succeeded(runs)), default=0)


def show(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table in Markdown, line by line as the rows come."""
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)
