"""The file of a mapping table, as people write it: what its sections and keys mean. `table_schema`
makes the models of these records that validate a user's table."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ckptforge.errors import shown
from ckptforge.tables.rope import RopeSection
from ckptforge.tables.rows import at, means
from ckptforge.tables.sharding import ShardRow
from ckptforge.tables.window import WindowRow
from ckptforge.wording import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Pair = Annotated[list[str], Meta(min_length=2, max_length=2)]


class PipelineSection(msgspec.Struct, frozen=True):
    """Where tensors lie when the layers are divided among stages."""

    layers: Annotated[
        str | list[str],
        means(
            "the axes that count layers, first that of all layers, which the stages "
            "divide; 'm+k' for one to whose index the length of k is added",
            expected="text, or a list of texts",
        ),
    ]
    first: Annotated[list[str], means("logical tensors of the first stage")] = []
    last: Annotated[list[str], means("logical tensors of the last stage")] = []
    tied: Annotated[
        dict[str, str],
        means(
            "an optional tensor, and the one that stands in for it on its stage where it is absent"
        ),
    ] = {}


class TowerSection(msgspec.Struct, frozen=True):
    """A part beside the language model with layers of its own, which a checkpoint holds whole or
    not at all."""

    layers: Annotated[str, means("the axis that counts its layers")]
    beside: Annotated[list[str], means("its logical tensors that aren't in layers")] = []


class LoraSection(msgspec.Struct, frozen=True):
    """Which weights may have a LoRA adapter, and what its factors are called."""

    modules: Annotated[list[str], means("logical tensors that are matrices (out, in)")]
    names: Annotated[
        dict[str, Pair],
        means(
            "by layout, the names of the factors A and B; {} is the weight's name without .weight"
        ),
    ]
    embeddings: Annotated[
        list[str], means("logical tensors whose factors are stored as their transposes")
    ] = []
    embedding_names: Annotated[
        dict[str, Pair], means("by layout, the names of the factors A and B of embeddings")
    ] = {}


class SwitchRow(msgspec.Struct, frozen=True):
    """A key of params.json, and what config.json says where it is true."""

    config: Annotated[dict[str, Any], means("the keys of config.json, with their values")]
    note: Annotated[str, means("what a user should hear of where the key is true")] = ""


class IgnoredSection(msgspec.Struct, frozen=True):
    """Names, with *, that are no weights: dropped and reported."""

    huggingface: Annotated[list[str], means("in layouts of Hugging Face")] = []
    mindspore: Annotated[list[str], means("in layouts of MindSpore")] = []
    consolidated: Annotated[list[str], means("in layouts of releases")] = []
    megatron: Annotated[list[str], means("in layouts of Megatron's")] = []


class RefusedSection(msgspec.Struct, frozen=True):
    """Names, with *, of tensors whose presence makes a conversion wrong, and why."""

    huggingface: Annotated[dict[str, str], means("in layouts of Hugging Face")] = {}
    mindspore: Annotated[dict[str, str], means("in layouts of MindSpore")] = {}


class TableFile(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping table: one model, its logical tensors, and how each layout stores them."""

    name: Annotated[
        str,
        means(
            "the table's name",
            pattern=r"^[A-Za-z0-9][\w.-]*$",
            expected="letters, digits, '.', '_' and '-', a letter or digit first",
        ),
    ]
    model_type: Annotated[
        list[str], means("config.json's model_type, by which the model is recognised", min_length=1)
    ]
    aliases: Annotated[list[str], means("what MindFormers' scripts call the model")] = []
    constants: Annotated[
        list[str],
        means(
            "values of config.json that compare compares as they stand: keys, with . "
            "for inner ones, or texts in single quotes, joined by or"
        ),
    ] = []
    keep_dtype: Annotated[
        list[str], means("logical tensors that casts leave as they are stored")
    ] = []
    defaults_from: Annotated[str, means("where the values of [defaults] come from")] = ""
    demo: Annotated[bool, means("whether the demo shows this table")] = False
    axes: Annotated[
        dict[str, str],
        means(
            "every axis, and what config.json says of its length: keys and numbers "
            "with *, /, +, - and or, 'per l' behind them where it may differ between the "
            "layers; or which indexes of another axis it counts: 'l where RULE', 'l but a'"
        ),
    ]
    tensors: Annotated[
        dict[str, str],
        means(
            "logical tensors with all their axes, in the order of a MindSpore "
            "checkpoint; with * at the end any number of tensors that pass through unchanged",
            min_length=1,
        ),
    ]
    optional: Annotated[
        dict[str, str],
        means(
            "logical tensors that may be absent, and the key of config.json under "
            "which they are: 'key' if it is true, 'not key' if it is false or absent"
        ),
    ] = {}
    integers: Annotated[
        dict[str, str],
        means(
            "logical tensors that hold integers, and the axis whose indexes these are, such as "
            "that of the experts"
        ),
    ] = {}
    layout: Annotated[
        dict[str, dict[str, str]],
        means("layouts, by name; the first of a family is written where none is named"),
    ]
    copies: Annotated[
        dict[str, dict[str, str]],
        means("by layout, stored names that hold once more what a logical tensor holds"),
    ] = {}
    shard: Annotated[
        dict[str, dict[str, ShardRow]],
        means(
            "by layout, how the network that holds it spreads each logical tensor; one "
            "without a row is whole on every device"
        ),
    ] = {}
    pipeline: Annotated[
        PipelineSection | None, means("where tensors lie when the layers are divided among stages")
    ] = None
    tower: Annotated[
        dict[str, TowerSection],
        means("parts beside the language model with layers of their own, such as a vision tower"),
    ] = {}
    lora: Annotated[LoraSection | None, means("which weights may have a LoRA adapter")] = None
    defaults: Annotated[
        dict[str, dict[str, Any]],
        means(
            "for each model_type, the keys of config.json that change what is "
            "computed, with the values that stand for absent ones"
        ),
    ] = {}
    config: Annotated[
        dict[str, dict[str, Any]],
        means(
            "by layout, keys of config.json that hold for models in it, whose files "
            "bring along what stands for a config.json without them"
        ),
    ] = {}
    switches: Annotated[
        dict[str, dict[str, SwitchRow]],
        means(
            "by layout of a release, keys of params.json that stand for several of "
            "config.json where they are true"
        ),
    ] = {}
    rope: Annotated[RopeSection | None, means("rotary embeddings")] = None
    window: Annotated[
        dict[str, WindowRow], means("sliding-window attention, for each model_type that has it")
    ] = {}
    ignored: Annotated[IgnoredSection, means("names that are no weights: dropped and reported")] = (
        IgnoredSection()
    )
    refused: Annotated[
        RefusedSection, means("names whose presence makes a conversion wrong, and why")
    ] = RefusedSection()
    example: Annotated[dict[str, Any], means("a tiny config.json, for the demo and the tests")] = {}

    def lineage(self, layout: str) -> list[str]:
        """The layouts that one is made of, itself last. Raises `TableError`."""
        chain = [layout]
        while parent := self.layout[chain[-1]].get("extends"):
            with at("layout", chain[-1]):
                if parent not in self.layout:
                    raise ValueError(
                        f"extends {shown(parent)}, which isn't a layout of this table; it has "
                        f"{', '.join(self.layout)}.{nearest(parent, self.layout)}"
                    )
                if parent in chain:
                    raise ValueError(f"extends itself by way of {parent!r}")
            chain.append(parent)
        return chain[::-1]


def read_shipped_file(content: bytes) -> TableFile:
    """A table that comes with ckptforge: the tests have validated it."""
    return msgspec.convert(tomllib.loads(content.decode()), TableFile)
