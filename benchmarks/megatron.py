"""Time and memory of Megatron's checkpoints beside cp: `python -m benchmarks.megatron`.

Makes a synthetic Llama in bfloat16, writes it as MindSpeed-LLM does for 16 ranks (tensor parallel
8, 2 stages), and takes it to Hugging Face and to 8 ranks (tensor parallel 4, 2 stages), each in a
process of its own, in turns with `cp` of what it reads, synced as ckptforge's output is. What is
read is in the page cache.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.beside_cp import main, row
from benchmarks.measurement import Measurement, measure
from benchmarks.model import bytes_of, files_of
from benchmarks.workspace import FORGE
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model

SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
LAYER = 2 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192)  # bytes
OUTER = 2 * 2 * 32000 * 2048
TENSOR, STAGES = "tensor_model_parallel_size", "pipeline_model_parallel_size"
JOBS = {16: {TENSOR: 8, STAGES: 2}, 8: {TENSOR: 4, STAGES: 2}}


def rows(work: Path, gigabytes: float, repeats: int) -> Iterator[list[str]]:
    """A row of the table for each command."""
    hub, ranks, out, copy = (work / name for name in ("hub", "ranks", "out", "copy"))
    table = next(table for table in shipped_tables() if table.name == "llama")
    layers = 2 * max(1, round((gigabytes * 1e9 - OUTER) / LAYER / 2))
    config = {**table.example, **SIZES, "num_hidden_layers": layers}
    write_model(hub, table, config, shard_bytes=10**9)
    jobs = {count: work / f"{count}.json" for count in JOBS}
    for count, path in jobs.items():
        path.write_text(json.dumps(JOBS[count]))

    def forge(source: Path, target: Path, to: str, *words: str) -> list[str]:
        line = [*FORGE, "convert", str(source), str(target), "--to", to, "--quiet", *words]
        return line if source == hub else [*line, "--config", str(hub)]

    commands = {
        "to 16 ranks": (hub, ranks, "mindspeed", "--dst-parallel-config", str(jobs[16])),
        "to Hugging Face": (ranks, out, "hub"),
        "to Hugging Face, --no-hash": (ranks, out, "hub", "--no-hash"),
        "to 8 ranks": (ranks, out, "mindspeed", "--dst-parallel-config", str(jobs[8])),
    }
    for title, (source, target, to, *words) in commands.items():
        runs: list[Measurement] = []
        copies: list[Measurement] = []
        line = ["sh", "-c", 'cp -r "$1" "$2" && sync -f "$2"', "sh", str(source), str(copy)]
        for _ in range(repeats):
            for found, command in ((copies, line), (runs, forge(source, target, to, *words))):
                for old in (copy, target):
                    shutil.rmtree(old, ignore_errors=True)
                os.sync()
                found.append(measure(command, files_of(source)))
        shutil.rmtree(copy, ignore_errors=True)
        yield row(title, bytes_of(source), runs, copies)
        if target == out:
            shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main(__doc__, rows, 2.0)
