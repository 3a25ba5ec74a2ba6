"""What a model is opened and saved with, from Python."""

from __future__ import annotations

from ckptforge.verbs.options.option import OptionalPlace, Place, flag, required
from ckptforge.verbs.options.shared import (
    NO_CONFIG,
    OUT,
    Configured,
    Lora,
    Mapped,
    MindSporeOutput,
    Overflow,
    Running,
    Shards,
    Stepped,
    Vocabulary,
    layout_of,
    source_config,
    source_strategy,
    target_config,
    target_strategy,
)


class Open(Configured, Stepped, Lora, Vocabulary, Mapped):
    """A checkpoint of any kind as a model."""

    path: Place = required(
        "any checkpoint: a file, a directory, rank directories, a Hugging Face directory, an "
        "adapter",
        kw_only=False,
    )
    layout: str | None = layout_of("`path`")
    strategy_dir: OptionalPlace = source_strategy("path")
    parallel_config: OptionalPlace = source_config("path")


class Save(MindSporeOutput, Shards, Overflow, Running):
    """A model into files."""

    out: Place = required(OUT, kw_only=False)
    strategy_dir: OptionalPlace = target_strategy()
    parallel_config: OptionalPlace = target_config()
    allow_no_config: bool = flag(NO_CONFIG)
