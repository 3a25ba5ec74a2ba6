"""What a model is opened and saved with, from Python."""

from __future__ import annotations

from ckptforge.verbs.options import phrases, shared
from ckptforge.verbs.options.option import OptionalPlace, Place, flag, required


class Open(
    shared.Configured,
    shared.Stepped,
    shared.Lora,
    shared.Vocabulary,
    shared.Mapped,
    shared.Reaching,
):
    """A checkpoint of any kind as a model."""

    path: Place = required(
        "any checkpoint: a file, a directory, rank directories, a Hugging Face directory, an "
        "adapter",
        kw_only=False,
    )
    layout: str | None = phrases.layout_of("`path`")
    strategy_dir: OptionalPlace = phrases.source_strategy("path")
    parallel_config: OptionalPlace = phrases.source_config("path")


class Save(shared.MindSporeOutput, shared.Released, shared.Shards, shared.Overflow, shared.Running):
    """A model into files."""

    out: Place = required(phrases.OUT, kw_only=False)
    strategy_dir: OptionalPlace = phrases.TARGET_STRATEGY
    parallel_config: OptionalPlace = phrases.TARGET_CONFIG
    allow_no_config: bool = flag(phrases.NO_CONFIG)
