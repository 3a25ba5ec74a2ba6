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
from typing import Any

from benchmarks.measurement import cells, measure, show
from benchmarks.model import REAL
from benchmarks.workspace import FORGE
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model

MODELS: dict[str, tuple[str, dict[str, int]]] = {
    "Mixtral 8x7B": ("mixtral", {**REAL, "num_hidden_layers": 32}),
    "Mixtral 8x22B": (
        "mixtral",
        {
            "hidden_size": 6144,
            "intermediate_size": 16384,
            "num_attention_heads": 48,
            "num_key_value_heads": 8,
            "vocab_size": 32768,
            "num_hidden_layers": 56,
        },
    ),
    "DeepSeek-V3": (
        "deepseek_v3",
        {
            "hidden_size": 7168,
            "intermediate_size": 18432,
            "moe_intermediate_size": 2048,
            "num_hidden_layers": 61,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "n_routed_experts": 256,
            "vocab_size": 129280,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "first_k_dense_replace": 3,
            "num_nextn_predict_layers": 1,
            "n_group": 8,
            "topk_group": 4,
            "num_experts_per_tok": 8,
        },
    ),
}


def jobs(layers: int) -> dict[str, dict[str, Any] | None]:
    """Name → a parallel configuration for a model of so many layers."""
    few = {"data_parallel": 64, "model_parallel": 8, "expert_parallel": 8, "pipeline_stage": 2}
    many = {"data_parallel": 256, "model_parallel": 4, "expert_parallel": 8, "pipeline_stage": 16}
    found: dict[str, dict[str, Any] | None] = {"one file": None}
    for degrees in (few, many):
        stages = degrees["pipeline_stage"]
        ranks = degrees["data_parallel"] * degrees["model_parallel"] * stages
        offset = [0] * (stages - 1) + [layers % stages]
        found[f"{ranks:,} ranks"] = {
            **degrees,
            "enable_parallel_optimizer": True,
            "offset": offset,
        }
    return found


def rows(work: Path, repeats: int) -> Iterator[list[str]]:
    for model, (name, sizes) in MODELS.items():
        hub = work / name / model.replace(" ", "-")
        table = next(table for table in shipped_tables() if table.name == name)
        write_model(hub, table, {**table.example, **sizes}, shard_bytes=5 * 10**9, sparse=True)
        for job, keys in jobs(sizes["num_hidden_layers"]).items():
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
