"""What the conversions are called with."""

from __future__ import annotations

from ckptforge.verbs.options.option import OptionalPlace, Place, option
from ckptforge.verbs.options.shared import (
    Configured,
    Converting,
    MindSporeOutput,
    Shards,
    source_config,
    strategy,
    target_config,
)


class ToMs(MindSporeOutput, Configured, Converting):
    """From a Hugging Face directory to a MindSpore checkpoint."""

    hf_dir: Place = option(
        "a Hugging Face directory: safetensors (one file, or shards with their index) and "
        "config.json",
        kw_only=False,
    )
    out: Place = option(
        "what is written: a file where it ends in .ckpt or .safetensors, else a directory",
        kw_only=False,
    )
    layout: str | None = option(
        "how MindSpore is to hold the model",
        default=None,
        unset="the model's first MindSpore layout in `ckptforge mapping list`",
        choices="dense|gmm|mcore|…",
        completes="mindspore",
    )
    strategy_dir: OptionalPlace = strategy(
        "write rank directories for the job with this strategy: a file, or a directory"
    )
    parallel_config: OptionalPlace = target_config()


class ToTorch(Shards, Configured, Converting):
    """From a MindSpore checkpoint to a Hugging Face directory."""

    ms: Place = option(
        "a MindSpore checkpoint: a .ckpt or .safetensors file, a directory with one, or rank "
        "directories",
        kw_only=False,
    )
    out_dir: Place = option("the directory that is written", kw_only=False)
    layout: str = option(
        "the layout that `ms` has, auto for the one that its names and shapes fit",
        default="auto",
        choices="auto|dense|gmm|…",
        completes="mindspore",
    )
    hf_layout: str | None = option(
        "the layout to write",
        default=None,
        unset="as the original directory had it, else hub",
        choices="hub|fused",
        completes="huggingface",
    )
    strategy_dir: OptionalPlace = strategy(
        "`ms` holds the rank directories of the job with this strategy"
    )
    parallel_config: OptionalPlace = source_config("ms")
    allow_no_config: bool = option(
        "write the weights alone where no config.json is known", default=False
    )


class Convert(MindSporeOutput, Shards, Configured, Converting):
    """From any layout to any other of the same model."""

    source: Place = option(
        "any checkpoint: a Hugging Face directory, a MindSpore file or directory, rank directories",
        metavar="IN",
        kw_only=False,
    )
    out: Place = option(
        "what is written: a file where it ends in .ckpt or .safetensors, else a directory",
        kw_only=False,
    )
    to: str = option("the layout to write", metavar="LAYOUT", completes="layout")
    from_: str | None = option(
        "the layout of `source`",
        default=None,
        unset="detected from names and shapes",
        metavar="LAYOUT",
        completes="layout",
    )
    src_strategy_dir: OptionalPlace = strategy(
        "`source` holds the rank directories of the job with this strategy"
    )
    src_parallel_config: OptionalPlace = source_config("source")
    dst_strategy_dir: OptionalPlace = strategy(
        "write rank directories for the job with this strategy: a file, or a directory"
    )
    dst_parallel_config: OptionalPlace = target_config()
