"""The keys of a parallel configuration for Megatron's trainers, as people write them: those of the
training script and of MindSpeed-LLM's converter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ckptforge.validation import Written, expected

Count = Annotated[int, Field(gt=0, lt=2**16), expected("a positive integer")]
Numbers = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**16)]] | str,
    expected("numbers, as a list or as text such as 3,4,4"),
]
PerPart = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**16)]] | list[list[Annotated[int, Field(ge=0, lt=2**16)]]],
    expected("a number of layers for each stage, or a list of such for each virtual stage"),
]


class MegatronKeys(Written):
    """How a job is cut, and which layers lie where."""

    tensor_model_parallel_size: Count = Field(
        default=1, description="ranks that share a tensor's rows or columns"
    )
    pipeline_model_parallel_size: Count = Field(
        default=1, description="stages that share the layers"
    )
    expert_model_parallel_size: Count = Field(
        default=1, description="ranks that share a layer's experts"
    )
    expert_tensor_parallel_size: Count | None = Field(
        default=None,
        description="ranks that share an expert's matrices: 1, or as many as share other tensors",
    )
    moe_tp_extend_ep: Annotated[bool, expected("true or false")] = Field(
        default=False,
        description="experts are spread over the ranks that share other tensors, too, and whole",
    )
    num_layers_per_virtual_pipeline_stage: Count | None = Field(
        default=None, description="layers in each of several parts of a stage"
    )
    num_layer_list: Numbers | None = Field(default=None, description="layers of each stage")
    noop_layers: Numbers | None = Field(
        default=None, description="places of layers that do nothing, counted from 0"
    )
    schedules_method: Annotated[
        Literal["dualpipev"] | None, expected("dualpipev, or nothing", ("dualpipev",))
    ] = Field(default=None, description="dualpipev: two parts in each stage, the second reversed")
    llm_pp_layers: PerPart | None = Field(
        default=None,
        description="MindSpeed-MM's models: the language model's layers of each stage, for each of "
        "its virtual stages",
    )
    vit_pp_layers: PerPart | None = Field(
        default=None,
        description="the same of the vision tower, which is in the first stage where it is omitted",
    )
