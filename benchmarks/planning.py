"""Time and memory of planning models of real size, from headers alone: `python -m
benchmarks.planning`.

Makes Mixtral 8x7B and 8x22B as sparse files (real headers, no weights), and runs `to-ms --dry-run`
on them, each in a process of its
own: to one file, and to 1,024 ranks of dp64 mp8 ep8 pp2 with optimizer parallel.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measurement import cells, measure, show
from benchmarks.model import REAL, make
from benchmarks.workspace import FORGE

MODELS = {
    "8x7B": {**REAL, "num_hidden_layers": 32},
    "8x22B": {
        "hidden_size": 6144,
        "intermediate_size": 16384,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "vocab_size": 32768,
        "num_hidden_layers": 56,
    },
}
JOBS = {
    "one file": None,
    "1,024 ranks": {
        "data_parallel": 64,
        "model_parallel": 8,
        "expert_parallel": 8,
        "pipeline_stage": 2,
        "enable_parallel_optimizer": True,
    },
}


def rows(work: Path, repeats: int) -> Iterator[list[str]]:
    for model, sizes in MODELS.items():
        hub = work / model
        make(hub, sizes, sparse=True, shard_bytes=5 * 10**9)
        for job, keys in JOBS.items():
            command = [*FORGE, "to-ms", str(hub), str(work / "out"), "--dry-run", "--quiet"]
            if keys is not None:
                config = work / "job.json"
                config.write_text(json.dumps(keys))
                command += ["--parallel_config", str(config)]
            yield [model, job, *cells([measure(command) for _ in range(repeats)])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory(prefix="ckptforge-benchmark-") as work:
        show(
            ["model", "to", "wall s", "min–max", "user + system s", "peak MB"],
            rows(Path(work), repeats),
        )


if __name__ == "__main__":
    main()
