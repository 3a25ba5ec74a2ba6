"""Time and memory of MindFormers' iteration directories beside cp: `python -m
benchmarks.iterations`.

Makes a synthetic Mixtral, writes it for 64 ranks of dp8 mp8 ep8 with optimizer parallel, and takes
it to Hugging Face and to 16 ranks, each in a process of its own, in turns with `cp` of as many
bytes. What is read is in the page cache.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.beside_cp import main, row
from benchmarks.measurement import Measurement, measure
from benchmarks.model import bytes_of, files_of, make, sizes_of
from benchmarks.workspace import FORGE

JOBS = {
    64: {"data_parallel": 8, "model_parallel": 8, "expert_parallel": 8},
    16: {"data_parallel": 2, "model_parallel": 8, "expert_parallel": 8},
}


def rows(work: Path, gigabytes: float, repeats: int) -> Iterator[list[str]]:
    hub, ranks, out = work / "hub", work / "ranks", work / "out"
    make(hub, sizes_of(gigabytes, False))
    for job, keys in JOBS.items():
        (work / f"{job}.json").write_text(json.dumps({**keys, "enable_parallel_optimizer": True}))

    def forge(verb: str, source: Path, *words: str) -> tuple[Path, list[str]]:
        target = ranks if source == hub else out
        return source, [*FORGE, verb, str(source), str(target), *words, "--quiet", "--overwrite"]

    written = ["--format", "mindformers", "--remove-redundancy"]
    jobs = {job: str(work / f"{job}.json") for job in JOBS}
    commands = {
        "to-ms, 64 ranks": forge(
            "to-ms", hub, "--layout", "mcore", *written, "--parallel-config", jobs[64]
        ),
        "to-torch": forge("to-torch", ranks),
        "reshard, 16 ranks": forge("reshard", ranks, *written, "--dst-parallel-config", jobs[16]),
    }
    for title, (source, command) in commands.items():
        runs: list[Measurement] = []
        copies: list[Measurement] = []
        target = ranks if source == hub else out
        for _ in range(repeats):
            copy = ["cp", "-r", str(source), str(work / "copy")]
            for found, line in ((copies, copy), (runs, command)):
                for old in (work / "copy", target):
                    shutil.rmtree(old, ignore_errors=True)
                os.sync()
                found.append(measure(line, files_of(source)))
        shutil.rmtree(work / "copy", ignore_errors=True)
        yield row(title, bytes_of(source), runs, copies)


if __name__ == "__main__":
    main(__doc__, rows, 1.0)
