"""What a model is opened and saved with, from Python."""

from __future__ import annotations

from ckptforge.verbs.options.option import OptionalPlace, Place, option
from ckptforge.verbs.options.shared import (
    Configured,
    Lora,
    Mapped,
    MindSporeOutput,
    Running,
    Shards,
    Stepped,
    Vocabulary,
    source_config,
    strategy,
    target_config,
)


class Open(Configured, Stepped, Lora, Vocabulary, Mapped):
    """A checkpoint of any kind as a model."""

    path: Place = option(
        "any checkpoint: a file, a directory, rank directories, a Hugging Face directory, an "
        "adapter",
        kw_only=False,
    )
    layout: str | None = option(
        "the layout of `path`",
        default=None,
        unset="detected from names and shapes",
        metavar="LAYOUT",
        completes="layout",
    )
    strategy_dir: OptionalPlace = strategy(
        "`path` holds the rank directories of the job with this strategy"
    )
    parallel_config: OptionalPlace = source_config("path")


class Save(MindSporeOutput, Shards, Running):
    """A model into files."""

    out: Place = option(
        "what is written: a file where it ends in .ckpt or .safetensors, else a directory",
        kw_only=False,
    )
    strategy_dir: OptionalPlace = strategy(
        "write rank directories for the job with this strategy: a file, or a directory"
    )
    parallel_config: OptionalPlace = target_config()
    allow_overflow: bool = option("allow casts that overflow to infinity", default=False)
    allow_no_config: bool = option(
        "write the weights alone where no config.json is known", default=False
    )
