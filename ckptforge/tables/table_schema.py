"""The file of a mapping table, as people write it: what its sections and keys mean.

The JSON schema for editors comes from here, and so do the messages for what doesn't fit it. The
rules between rows are in the modules that make the sections' records.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field

from ckptforge.tables.shard_schema import ShardRow, Text
from ckptforge.validation import Written, expected

Texts = list[Text]
_NAME = r"^[A-Za-z0-9][\w.-]*$"
TableName = Annotated[
    str,
    Field(pattern=_NAME),
    expected("letters, digits, '.', '_' and '-', a letter or digit first"),
]
LayersText = Annotated[str | list[str], expected("text, or a list of texts")]
Pair = Annotated[Texts, Field(min_length=2, max_length=2)]


_Family = Literal["huggingface", "mindspore"]
Family = Annotated[_Family, expected(" or ".join(get_args(_Family)), get_args(_Family))]
_Told = Literal["by name only", "by names and shapes"]
Told = Annotated[_Told, expected("'by name only', or nothing", get_args(_Told))]
NotKnown = Annotated[Literal["not known"], expected("'not known', or nothing", ("not known",))]


class LayoutSection(Written):
    """How one layout stores the logical tensors: a row for each stored tensor. A row that holds one
    logical tensor has its name, one that holds several any other."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Text]

    family: Family | None = Field(
        default=None,
        description="whose layout it is; that of the layout which it extends, if omitted",
    )
    extends: Text | None = Field(
        default=None, description="a layout whose rows it has, too, unless it redefines them"
    )
    told: Told = Field(
        default="by names and shapes",
        description="'by name only' if names and shapes are those of another layout, which is "
        "meant unless this one is named",
    )
    sharding: NotKnown | None = Field(
        default=None,
        description="'not known' if its network doesn't spread it as that of the layout which it "
        "extends",
    )


class PipelineSection(Written):
    """Where tensors lie when the layers are divided among stages."""

    layers: LayersText = Field(
        description="the axes that count layers, first that of all layers, which the stages "
        "divide; 'm+k' for one to whose index the length of k is added"
    )
    first: Texts = Field(default=[], description="logical tensors of the first stage")
    last: Texts = Field(default=[], description="logical tensors of the last stage")
    tied: dict[str, Text] = Field(
        default={},
        description="an optional tensor, and the one that stands in for it on its stage where it "
        "is absent",
    )


class LoraSection(Written):
    """Which weights may have a LoRA adapter, and what its factors are called."""

    modules: Texts = Field(description="logical tensors that are matrices (out, in)")
    names: dict[str, Pair] = Field(
        description="by layout, the names of the factors A and B; {} is the weight's name without "
        ".weight"
    )
    embeddings: Texts = Field(
        default=[], description="logical tensors whose factors are stored as their transposes"
    )
    embedding_names: dict[str, Pair] = Field(
        default={}, description="by layout, the names of the factors A and B of embeddings"
    )


class RopeSection(Written):
    """Rotary embeddings: rope_scaling, rope_parameters and the keys beside them."""

    dim: Text = Field(description="how many numbers of a head are rotated, as in [axes]")
    scales_softmax: Annotated[bool, expected("true or false")] = Field(
        default=False, description="yarn's mscale_all_dim scales the attention's scores, too"
    )


class WindowRow(Written):
    """The keys of config.json that say how far back a layer attends."""

    size: Text = Field(description="the key of the window's length in tokens")
    switch: Text | None = Field(default=None, description="the key that must be true for a window")
    layer_types: Text | None = Field(
        default=None, description="the key that lists which layers have the window"
    )
    first_layer: Text | None = Field(
        default=None,
        description="the key of the first layer that has it, where layer_types says nothing",
    )


class IgnoredSection(Written):
    """Names, with *, that are no weights: dropped and reported."""

    huggingface: Texts = Field(default=[], description="in layouts of Hugging Face")
    mindspore: Texts = Field(default=[], description="in layouts of MindSpore")


class RefusedSection(Written):
    """Names, with *, of tensors whose presence makes a conversion wrong, and why."""

    huggingface: dict[str, Text] = Field(default={}, description="in layouts of Hugging Face")
    mindspore: dict[str, Text] = Field(default={}, description="in layouts of MindSpore")


class WrittenTable(Written):
    """A mapping table: one model, its logical tensors, and how each layout stores them."""

    model_config = ConfigDict(title="Mapping table")

    name: TableName = Field(description="the table's name")
    model_type: Annotated[Texts, Field(min_length=1)] = Field(
        description="config.json's model_type, by which the model is recognised"
    )
    aliases: Texts = Field(default=[], description="what MindFormers' scripts call the model")
    constants: Texts = Field(
        default=[],
        description="values of config.json that compare compares as they stand: keys, with . for "
        "inner ones, or texts in single quotes, joined by or",
    )
    keep_dtype: Texts = Field(
        default=[], description="logical tensors that casts leave as they are stored"
    )
    defaults_from: Text = Field(default="", description="where the values of [defaults] come from")
    demo: Annotated[bool, expected("true or false")] = Field(
        default=False, description="whether the demo shows this table"
    )
    axes: dict[str, Text] = Field(
        description="every axis, and what config.json says of its length: keys and numbers with *, "
        "/, +, - and or"
    )
    tensors: Annotated[dict[str, Text], Field(min_length=1)] = Field(
        description="logical tensors with all their axes, in the order of a MindSpore checkpoint"
    )
    optional: dict[str, Text] = Field(
        default={},
        description="logical tensors that may be absent, and the key of config.json under which "
        "they are: 'key' if it is true, 'not key' if it is false or absent",
    )
    layout: Annotated[dict[str, LayoutSection], Field(min_length=1)] = Field(
        description="layouts, by name; the first of a family is written where none is named"
    )
    copies: dict[str, dict[str, Text]] = Field(
        default={},
        description="by layout, stored names that hold once more what a logical tensor holds",
    )
    shard: dict[str, dict[str, ShardRow]] = Field(
        default={},
        description="by layout, how the network that holds it spreads each logical tensor; one "
        "without a row is whole on every device",
    )
    pipeline: PipelineSection | None = Field(
        default=None, description="where tensors lie when the layers are divided among stages"
    )
    lora: LoraSection | None = Field(
        default=None, description="which weights may have a LoRA adapter"
    )
    defaults: dict[str, dict[str, Any]] = Field(
        default={},
        description="for each model_type, the keys of config.json that change what is computed, "
        "with the values that stand for absent ones",
    )
    rope: RopeSection | None = Field(default=None, description="rotary embeddings")
    window: dict[str, WindowRow] = Field(
        default={}, description="sliding-window attention, for each model_type that has it"
    )
    ignored: IgnoredSection = Field(
        default_factory=IgnoredSection,
        description="names that are no weights: dropped and reported",
    )
    refused: RefusedSection = Field(
        default_factory=RefusedSection,
        description="names whose presence makes a conversion wrong, and why",
    )
    example: dict[str, Any] = Field(
        default={}, description="a tiny config.json, for the demo and the tests"
    )


def table_schema() -> dict[str, Any]:
    """The JSON schema of a table's file."""
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, **WrittenTable.model_json_schema()}
