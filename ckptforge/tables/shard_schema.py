"""What people write in a row of [shard], of a table or of a parallel configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ckptforge.dtypes import BY_NAME
from ckptforge.tables.sharding import FLAGS
from ckptforge.validation import Written, expected

Text = Annotated[str, expected("text")]


def _named_dtype(name: str) -> str:
    if name not in BY_NAME:
        raise ValueError(name)
    return name


DTypeName = Annotated[
    str,
    AfterValidator(_named_dtype),
    expected("a dtype, such as float32", BY_NAME),
    Field(json_schema_extra={"enum": [*BY_NAME]}),
]


_FlagName = Literal["vocab_emb_dp", "parallel_optimizer"]


FlagName = Annotated[_FlagName, expected(" or ".join(FLAGS), FLAGS)]


MaybeByFlag = Annotated[bool | _FlagName, expected(f"true, false, {' or '.join(FLAGS)}", FLAGS)]


class ShardRow(Written):
    """How a network spreads one logical tensor over the devices of a stage."""

    cut: Text = Field(
        default="",
        description="which dimension of a parallel configuration cuts which axis, as axis:mp "
        "(model parallel) or axis:ep (expert parallel), with ? where an axis that doesn't divide "
        "stays whole; the tensor is whole if omitted",
    )
    whole_if: FlagName | None = Field(
        default=None, description="the flag of a parallel configuration under which it isn't cut"
    )
    optimizer: MaybeByFlag = Field(
        default=True,
        description="whether optimizer parallelism may cut it once more: yes, no, or by a flag",
    )
    dtype: DTypeName | None = Field(
        default=None, description="what the network holds it in, where that isn't the model's dtype"
    )
