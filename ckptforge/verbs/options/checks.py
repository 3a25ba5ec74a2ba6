"""What the verbs that only look are called with, and the one that removes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ckptforge.verbs.options.option import OptionalPlace, Place, Say, option
from ckptforge.verbs.options.record import Options
from ckptforge.verbs.options.shared import (
    Configured,
    Described,
    Mapped,
    Stepped,
    Vocabulary,
    Workers,
    source_config,
    strategy,
)


class Inspect(Described, Mapped, Stepped):
    """What is in a checkpoint."""

    path: Place = option("any checkpoint: a file, or a directory of any kind", kw_only=False)
    strategy_dir: OptionalPlace = strategy(
        "`path` holds the rank directories of the job with this strategy: shows which rank holds "
        "what"
    )
    parallel_config: OptionalPlace = source_config("path")


class Compare(Vocabulary, Configured, Mapped, Workers):
    """Whether two checkpoints are the same."""

    a: Place = option("any checkpoint", kw_only=False)
    b: Place = option("any other", kw_only=False)
    strategy_dir_a: OptionalPlace = strategy(
        "`a` holds the rank directories of the job with this strategy"
    )
    strategy_dir_b: OptionalPlace = strategy(
        "`b` holds the rank directories of the job with this strategy"
    )
    parallel_config_a: OptionalPlace = source_config("a")
    parallel_config_b: OptionalPlace = source_config("b")
    layout_a: str | None = option(
        "the layout of `a`",
        default=None,
        unset="detected from names and shapes",
        metavar="LAYOUT",
        completes="layout",
    )
    layout_b: str | None = option(
        "the layout of `b`", default=None, metavar="LAYOUT", completes="layout"
    )
    after_cast: str | None = option(
        "cast the floating-point weights of `a` to this first; where dtypes differ then, values "
        "are compared",
        default=None,
        choices="fp16|bf16|fp32|fp64",
        completes="dtype",
    )
    weights_only: bool = option("ignore optimizer state and counters", default=False)


class Check(Workers):
    """Whether an output is still what was written."""

    path: Place = option("an output of ckptforge: a file, or a directory", kw_only=False)


class Verify(Options):
    """Whether MindSpore computes what transformers does."""

    hf_dir: Place = option(
        "a Hugging Face directory: safetensors (one file, or shards with their index) and "
        "config.json",
        kw_only=False,
    )
    ms: Place = option(
        "a MindSpore checkpoint: a .ckpt or .safetensors file, a directory with one, or rank "
        "directories",
        kw_only=False,
    )
    strategy_dir: OptionalPlace = strategy(
        "`ms` holds the rank directories of the job with this strategy"
    )
    parallel_config: OptionalPlace = source_config("ms")
    layout: str | None = option(
        "the layout that `ms` has",
        default=None,
        unset="detected from names and shapes",
        choices="dense|gmm|…",
        completes="mindspore",
    )
    device: str = option("where MindSpore computes", default="cpu", choices="cpu|ascend[:N]")
    compute: Literal["fp32", "fp16", "bf16"] = option("precision on both sides", default="fp32")
    layers: Sequence[int] | None = option(
        "check only these layers, numbers in order, each with the output of the one checked "
        "before it",
        default=None,
        unset="all, and the logits",
        metavar="0,1,31",
    )
    tokens: int | Sequence[int] | None = option(
        "how many random tokens, or their ids",
        default=None,
        unset="256 for small models, else 32",
        metavar="N|ID,ID,…",
    )
    text: str | None = option(
        "tokens from a text, by the tokenizer in `hf_dir`", default=None, metavar="TEXT"
    )
    generate: int = option(
        "continue greedily by so many tokens on both sides", default=0, bounds=(0, 1000)
    )
    say: Say | None = option("called with a line of text for each layer", default=None, hidden=True)


class Clean(Options):
    """What interrupted runs left."""

    directory: Place = option(
        "where the outputs were being made, or the unfinished output itself",
        metavar="DIR",
        kw_only=False,
    )
    dry_run: bool = option("say what is there and remove nothing", default=False)
