"""The keys of a configuration of MindFormers' PyNative trainer, as people write them.

Source: MindFormers r2.1, `pynative/config/config.py` (`ParallelismConfig`).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ckptforge.parallel.config_schema import Count, Spelt
from ckptforge.validation import Written, expected

_IN = "parallelism."
Layers = Annotated[
    str | list[str] | list[list[int]],
    expected("auto, or a text such as '0-3, 8-11' for each stage, or a list of lists"),
]


class PyNativeKeys(Written):
    """The keys that are read of the section `parallelism`, or of a file of only these."""

    data_parallel_shard: Annotated[
        Annotated[int, Field(ge=-1, le=-1)] | Count,
        expected("a positive integer"),
        Spelt(_IN + "data_parallel_shard"),
    ] = Field(default=-1, description="devices that hold a part of each parameter each")
    data_parallel_replicate: Annotated[Count, Spelt(_IN + "data_parallel_replicate")] = Field(
        default=1,
        description="groups of such devices; MindFormers' files don't say it, as it follows from "
        "the number of ranks",
    )
    dense_fsdp_shard_size: Annotated[Count | None, Spelt(_IN + "dense_fsdp_shard_size")] = Field(
        default=None, description="devices that share a parameter which isn't one of experts"
    )
    tensor_parallel: Annotated[Count, Spelt(_IN + "tensor_parallel")] = Field(
        default=1, description="devices that share a tensor's rows or columns"
    )
    context_parallel: Annotated[Count, Spelt(_IN + "context_parallel")] = Field(
        default=1, description="devices that share a sequence; they shard parameters, too"
    )
    expert_parallel: Annotated[Count, Spelt(_IN + "expert_parallel")] = Field(
        default=1, description="devices that share a layer's experts"
    )
    pipeline_parallel: Annotated[Count, Spelt(_IN + "pipeline_parallel")] = Field(
        default=1, description="stages that share the layers"
    )
    pipeline_parallel_interleave_num: Annotated[
        Count, Spelt(_IN + "pipeline_parallel_interleave_num")
    ] = Field(default=1, description="parts of the layers in each stage")
    pipeline_parallel_layers_per_stage: Annotated[
        Layers | None, Spelt(_IN + "pipeline_parallel_layers_per_stage")
    ] = Field(default=None, description="auto, or which layers are in each stage")
