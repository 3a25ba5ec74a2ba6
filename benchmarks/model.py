"""The synthetic Mixtral that is measured with, and the sizes of published models."""

from __future__ import annotations

from pathlib import Path

from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model

SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
MIXTRAL_8X7B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}
DEEPSEEK_V3 = {
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
}


def make(
    directory: Path,
    sizes: dict[str, int],
    sparse: bool = False,
    shard_bytes: int = 10**9,
    model: str = "mixtral",
) -> None:
    """A Hugging Face directory in bfloat16 of a model of these sizes."""
    table = next(table for table in shipped_tables() if table.name == model)
    write_model(
        directory, table, {**table.example, **sizes}, shard_bytes=shard_bytes, sparse=sparse
    )


def sizes_of(gigabytes: float, real: bool) -> dict[str, int]:
    """As many layers as make so many bytes, or nearly; at least one."""
    sizes = MIXTRAL_8X7B if real else SIZES
    hidden, inner, vocabulary = (
        sizes["hidden_size"],
        sizes["intermediate_size"],
        sizes["vocab_size"],
    )
    heads, groups = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    experts = 8 * 3 * hidden * inner
    attention = 2 * hidden * hidden * (1 + groups / heads)
    layers = (gigabytes * 1e9 / 2 - 2 * hidden * vocabulary) / (experts + attention)
    return {**sizes, "num_hidden_layers": max(1, round(layers))}


def files_of(*paths: Path) -> list[Path]:
    """The files themselves, and those in directories, below which none is hidden."""
    return [
        file
        for path in paths
        for file in ([path] if path.is_file() else sorted(path.rglob("*")))
        if file.is_file()
    ]


def bytes_of(*paths: Path) -> int:
    return sum(file.stat().st_size for file in files_of(*paths))
