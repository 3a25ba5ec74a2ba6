"""One job by threads of one process, and by processes of an executor: `python -m
benchmarks.executors`.

Cuts a synthetic Mixtral into 16 ranks with `--workers N`, with N processes of concurrent.futures'
ProcessPoolExecutor, and with N of Dask's where it is installed; each in a process of its own, in
turns with cp of the model.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.beside_cp import main, row
from benchmarks.measurement import measure
from benchmarks.model import bytes_of, files_of, make, sizes_of
from benchmarks.workspace import FORGE

CONFIG = {
    "data_parallel": 4,
    "model_parallel": 4,
    "expert_parallel": 4,
    "enable_parallel_optimizer": True,
}
WORKERS = 2
POOL = """
import sys
from concurrent.futures import ProcessPoolExecutor
import ckptforge
if __name__ == "__main__":
    with ProcessPoolExecutor({workers}) as pool:
        ckptforge.to_ms(*sys.argv[1:3], parallel_config=sys.argv[3], executor=pool)
"""


def rows(work: Path, gigabytes: float, repeats: int) -> Iterator[list[str]]:
    hub, out, config, pool = work / "hub", work / "out", work / "job.json", work / "pool.py"
    make(hub, sizes_of(gigabytes, False))
    config.write_text(json.dumps(CONFIG))
    pool.write_text(POOL.format(workers=WORKERS))
    forge = [*FORGE, "to-ms", str(hub), str(out), "--parallel_config", str(config), "--quiet"]
    jobs = {
        "cp": ["cp", "-r", str(hub), str(out)],
        f"--workers {WORKERS}": [*forge, "--workers", str(WORKERS)],
        f"ProcessPoolExecutor({WORKERS})": [
            sys.executable,
            *map(str, (pool, hub, out, config)),
        ],
    }
    if importlib.util.find_spec("distributed"):
        jobs[f"--dask local:{WORKERS}"] = [*forge, "--dask", f"local:{WORKERS}"]
    runs: dict[str, list] = {name: [] for name in jobs}
    written: dict[str, int] = {}
    for _ in range(repeats):
        for name, line in jobs.items():
            measure(["rm", "-rf", str(out)])
            runs[name].append(measure(line, files_of(hub), bytes_of(hub) * 2))
            written[name] = bytes_of(out)
    for name, found in runs.items():
        yield row(name, written[name], found, runs["cp"])


if __name__ == "__main__":
    main(__doc__, rows, 1.5)
