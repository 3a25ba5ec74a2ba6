"""A run guided by coverage: libFuzzer, by atheris, keeps what reaches new code and mutates that
further, with the same mutations."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import NoReturn

import atheris


def run_guided(name: str, runs: int, seconds: float | None, seed: int, keep: Path) -> NoReturn:
    """Reads `runs` inputs and ends the process, with the report as JSON as the last line."""
    with atheris.instrument_imports(include=["ckptforge"]):
        from fuzz.run import Runner, memory

        runner = Runner(name, seed, keep)
    target, report = runner.target, runner.report
    corpus = Path(tempfile.mkdtemp(prefix="ckptforge-corpus-"))
    for i, content in enumerate(target.seeds):
        (corpus / str(i)).write_bytes(content)
    began = time.perf_counter()
    start: tuple[int, int] | None = None

    def mutate(data: bytes, max_size: int, mutation: int) -> bytes:
        random = Random(mutation)
        if random.random() < 0.2:
            return bytes(atheris.Mutate(data, max_size))
        return target.mutate(data, target.seeds, random)[:max_size]

    def cross(data: bytes, other: bytes, max_size: int, mutation: int) -> bytes:
        random = Random(mutation)
        return (
            data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]
        )[:max_size]

    def read(data: bytes) -> None:
        nonlocal start
        runner.attempt(data, str(report.runs))
        took = time.perf_counter() - began
        if start is None and (
            report.runs * 10 >= runs or (seconds is not None and took * 10 > seconds)
        ):
            start = memory()
        if report.runs >= runs or (seconds is not None and took > seconds):
            report.measure(start)
            report.seconds = took
            print(json.dumps(report.to_json()), flush=True)
            runner.directory.cleanup()
            shutil.rmtree(corpus)
            os._exit(1 if report.failures else 0)

    arguments = [
        sys.argv[0],
        f"-seed={seed + 1}",
        "-max_len=131072",
        "-rss_limit_mb=2048",
        "-verbosity=0",
        str(corpus),
    ]
    atheris.Setup(arguments, read, custom_mutator=mutate, custom_crossover=cross)
    atheris.Fuzz()
    sys.exit(1)
