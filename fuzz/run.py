"""Running a target: every input is read, timed, and its error's message looked at; what fails is
kept."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from ckptforge.errors import CkptforgeError, printable
from ckptforge.parallel import device_layout
from fuzz.targets import Target, build

HANG = 1.0  # seconds
_STOP = 20  # seconds after which a hang is ended
_WARM = 0.1  # of the runs, after which memory should grow no more
_ROOM = 1 << 30  # bytes of address space beyond what the process has
_MESSAGE = 4000  # characters


@dataclass
class Report:
    """What came of a run. `seconds` are wall time, `slowest` is processor time, as the machine may
    be shared; `grown` is how many bytes more are resident at the end than after a tenth of the run,
    `blocks` how many more blocks of memory Python's objects take."""

    target: str
    seed: int
    runs: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    grown: int = 0
    blocks: int = 0
    peak: int = 0
    failures: list[str] = field(default_factory=list)

    def measure(self, start: tuple[int, int] | None) -> None:
        """Notes how memory has grown since `start`."""
        self.grown, self.blocks = (
            now - before for now, before in zip(memory(), start or memory(), strict=True)
        )
        self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def to_json(self) -> dict[str, Any]:
        """The report of a run, for a file."""
        return asdict(self)


class Hang(BaseException):
    """Reading takes so long that it is ended."""


def memory() -> tuple[int, int]:
    """(resident bytes of this process, blocks that its Python objects take), without what is only
    kept to be used again."""
    device_layout._box.cache_clear()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(
        Path("/proc/self/statm").read_text().split()[1]
    ) * resource.getpagesize(), sys.getallocatedblocks()


class Runner:
    """Reads inputs of one target; `keep` is where inputs that fail are put, `hang` the seconds that
    are too long."""

    def __init__(self, name: str, seed: int, keep: Path | None = None, hang: float = HANG) -> None:
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.directory = tempfile.TemporaryDirectory(prefix="ckptforge-fuzz-", dir=memory)
        self.work, self.hang = Path(self.directory.name), hang
        self.target: Target = build(name, self.work)
        self.report = Report(name, seed)
        self.keep = keep

    def input(self, number: int) -> bytes:
        """The input of that number, the same in every run with this seed."""
        random = Random(f"{self.report.seed} {self.target.name} {number}")
        return self.target.mutate(random.choice(self.target.seeds), self.target.seeds, random)

    def loop(self, runs: int, seconds: float | None = None) -> Report:
        """Reads that many inputs, or for so long."""
        began = time.perf_counter()
        start: tuple[int, int] | None = None
        warm = max(1, int(runs * _WARM))
        with _limits():
            for number in range(runs):
                took = time.perf_counter() - began
                if seconds is not None and took > seconds:
                    break
                if start is None and (
                    number == warm or (seconds is not None and took > seconds * _WARM)
                ):
                    start = memory()
                self.attempt(self.input(number), str(number))
            self.report.measure(start)
        self.report.seconds = time.perf_counter() - began
        return self.report

    def attempt(self, data: bytes, label: str) -> None:
        """Reads one input and notes what it does wrong."""
        report = self.report
        report.runs += 1
        problem = None
        self.target.prepare(data)
        signal.setitimer(signal.ITIMER_REAL, _STOP)
        began = time.process_time()
        try:
            self.target.read(data)
        except CkptforgeError as error:
            report.refused += 1
            problem = self._bad_message(error)
        except Hang:
            problem = f"a hang, ended after {_STOP} s"
        except Exception:
            problem = traceback.format_exc(limit=-4)
        took = time.process_time() - began
        signal.setitimer(signal.ITIMER_REAL, 0)
        report.slowest = max(report.slowest, took)
        if took > self.hang and problem is None:
            problem = f"took {took:.1f} s"
        if problem is not None:
            report.failures.append(f"{self.target.name} {label}: {problem}")
            if self.keep is not None:
                self.keep.mkdir(parents=True, exist_ok=True)
                (self.keep / f"{self.target.name}-{report.seed}-{label}").write_bytes(data)
            if len(report.failures) < 20:
                print(report.failures[-1], file=sys.stderr, flush=True)

    def _bad_message(self, error: CkptforgeError) -> str | None:
        message = str(error)
        if str(self.work) not in message:
            return f"names no file: {message[:300]!r}"
        if len(message) > _MESSAGE:
            return f"a message of {len(message)} characters: {message[:300]!r}"
        if any(printable(line) != line for line in message.split("\n")):
            return f"unprintable: {message[:300]!r}"
        return None


class _limits:
    """A reader may not take more than a gigabyte, nor more time than is noticed."""

    def __enter__(self) -> None:
        def stop(*_: object) -> None:
            raise Hang

        signal.signal(signal.SIGALRM, stop)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        self.before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size + _ROOM, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self.before)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
