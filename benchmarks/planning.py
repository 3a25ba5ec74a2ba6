"""Time and memory of planning models of real size, from headers alone: `python -m benchmarks.planning`.

Makes Mixtral 8x7B and 8x22B as sparse files (real headers, no weights), and runs `to-ms --dry-run` on them, each in a process of its
own: to one file, and to 1,024 ranks of dp64 mp8 ep8 pp2 with optimizer parallel.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.__main__ import REAL, measure
from ckptforge.mapping.table import shipped_tables
from ckptforge.synthetic import write_model

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
    "1,024 ranks": {"data_parallel": 64, "model_parallel": 8, "expert_parallel": 8, "pipeline_stage": 2, "enable_parallel_optimizer": True},
}


def main() -> None:
    table = next(table for table in shipped_tables() if table.name == "mixtral")
    print("| model | to | wall s | min–max | cpu s | peak MB |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="ckptforge-benchmark-") as work:
        for model, sizes in MODELS.items():
            hub = Path(work) / model
            write_model(hub, table, {**table.example, **sizes}, shard_bytes=5 * 10**9, sparse=True)
            for job, keys in JOBS.items():
                command = [sys.executable, "-m", "ckptforge", "to-ms", str(hub), f"{work}/out", "--dry-run", "--quiet"]
                if keys is not None:
                    config = Path(work) / "job.json"
                    config.write_text(json.dumps(keys))
                    command += ["--parallel_config", str(config)]
                taken = [measure(command) for _ in range(5)]
                wall, cpu, memory = (statistics.median(run[i] for run in taken) for i in range(3))
                spread = f"{min(run[0] for run in taken):.2f}–{max(run[0] for run in taken):.2f}"
                print(f"| {model} | {job} | {wall:.2f} | {spread} | {cpu:.2f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
