"""The keys of a parallel configuration, as people write them.

Source: MindFormers v1.0.2 … v1.7.0, `TransformerOpParallelConfig`, `LayerSetting` and the
`parallel` section of its configs.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ckptforge.tables.sharding import ShardRow
from ckptforge.validation import Written, expected, model_of


class Spelt:
    """Where else a key may stand: in MindFormers' sections, or under a shorter name."""

    def __init__(self, *places: str) -> None:
        self.places = places


Count = Annotated[int, Field(gt=0, lt=2**20), expected("a positive integer")]
Flag = Annotated[bool, expected("true or false")]
Kilobytes = Annotated[int, Field(ge=0, lt=2**63), expected("a number of KB from 0")]
_Whole = Annotated[int, Field(gt=-(2**63), lt=2**63)]
Offset = Annotated[
    _Whole | list[_Whole] | list[list[_Whole]],
    expected("an integer, a list of them, or a list of lists"),
]
Shards = Annotated[
    Annotated[int, Field(ge=-1, le=-1)] | Count, expected("-1 or a positive integer")
]

ShardModel: Any = model_of(ShardRow)


class ParallelKeys(Written):
    """The keys that are read of MindFormers' YAML files, or of a file of only these."""

    data_parallel: Annotated[
        Count, Spelt("parallel_config.data_parallel", "parallel_config.dp", "dp")
    ] = Field(default=1, description="copies of the network, each for a part of a batch")
    model_parallel: Annotated[
        Count, Spelt("parallel_config.model_parallel", "parallel_config.mp", "mp")
    ] = Field(default=1, description="devices that share a tensor's rows or columns")
    expert_parallel: Annotated[
        Count, Spelt("parallel_config.expert_parallel", "parallel_config.ep", "ep")
    ] = Field(default=1, description="devices that share a layer's experts")
    pipeline_stage: Annotated[
        Count,
        Spelt(
            "parallel_config.pipeline_stage", "parallel.pipeline_stages", "parallel_config.pp", "pp"
        ),
    ] = Field(default=1, description="stages that share the layers")
    context_parallel: Annotated[
        Count, Spelt("parallel_config.context_parallel", "parallel_config.cp", "cp")
    ] = Field(default=1, description="devices that share a sequence; only 1 is supported")
    vocab_emb_dp: Annotated[Flag, Spelt("parallel_config.vocab_emb_dp")] = Field(
        default=True, description="the embedding and lm_head stay whole"
    )
    parallel_mode: Annotated[
        int | str, expected("a number or a text"), Spelt("parallel.parallel_mode")
    ] = Field(default=1, description="1 or semi_auto_parallel, the only one that is supported")
    enable_parallel_optimizer: Annotated[Flag, Spelt("parallel.enable_parallel_optimizer")] = Field(
        default=False, description="optimizer parallelism: replicas cut the weights once more"
    )
    parallel_optimizer_threshold: Annotated[
        Kilobytes, Spelt("parallel.parallel_optimizer_config.parallel_optimizer_threshold")
    ] = Field(default=64, description="KB of the full tensor, from which it is cut")
    optimizer_weight_shard_size: Annotated[
        Shards,
        Spelt(
            "parallel.parallel_optimizer_config.optimizer_weight_shard_size",
            "parallel.optimizer_weight_shard_size",
        ),
    ] = Field(
        default=-1,
        description="parts; -1, or a number that doesn't divide the replicas: as many as there are "
        "replicas",
    )
    pipeline_interleave: Annotated[Flag, Spelt("parallel.pipeline_config.pipeline_interleave")] = (
        Field(default=False, description="each stage has several parts of the layers")
    )
    pp_interleave_num: Annotated[
        Count, Spelt("model.model_config.pp_interleave_num", "parallel_config.pp_interleave_num")
    ] = Field(default=1, description="how many parts, with pipeline_interleave")
    offset: Annotated[Offset, Spelt("model.model_config.offset")] = Field(
        default=0,
        description="layers more or less in each stage; one list, or one for each interleaved part",
    )
    num_layers: Annotated[
        Count | None, Spelt("model.model_config.num_layers", "model.model_config.num_hidden_layers")
    ] = Field(default=None, description="layers of the model")
    num_heads: Annotated[
        Count | None,
        Spelt("model.model_config.num_heads", "model.model_config.num_attention_heads"),
    ] = Field(default=None, description="attention heads of the model")
    n_kv_heads: Annotated[
        Count | None,
        Spelt("model.model_config.n_kv_heads", "model.model_config.num_key_value_heads"),
    ] = Field(default=None, description="key-value heads of the model")
    parallel_optimizer: Annotated[Flag, Spelt("model.model_config.parallel_optimizer")] = Field(
        default=False, description="optimizer parallelism may cut the embedding"
    )
    expert_num: Annotated[
        Count | None, Spelt("moe_config.expert_num", "model.model_config.moe_config.expert_num")
    ] = Field(default=None, description="experts of a layer")
    shard: dict[str, ShardModel] = Field(
        default={}, description="rows that replace those of the mapping table, by logical tensor"
    )


def places_of_keys(keys: type[Written]) -> dict[str, tuple[str, ...]]:
    """Key → where else it may stand."""
    return {
        key: next((found.places for found in field.metadata if isinstance(found, Spelt)), ())
        for key, field in keys.model_fields.items()
    }
