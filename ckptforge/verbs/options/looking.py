"""What the verbs that only look are called with, and the one that removes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ckptforge.verbs.options import phrases, shared
from ckptforge.verbs.options.option import OptionalPlace, Place, Say, flag, option, required
from ckptforge.verbs.options.record import Options


class Inspect(shared.Configured, shared.Mapped, shared.Stepped, shared.Reaching):
    """What is in a checkpoint."""

    path: Place = required("any checkpoint: a file, or a directory of any kind", kw_only=False)
    layout: str | None = phrases.layout_of("`path`")
    strategy_dir: OptionalPlace = phrases.source_strategy("path")
    parallel_config: OptionalPlace = phrases.source_config("path")


class Compare(shared.Vocabulary, shared.Configured, shared.Mapped, shared.Workers):
    """Whether two checkpoints are the same."""

    a: Place = required("any checkpoint", kw_only=False)
    b: Place = required("any other", kw_only=False)
    strategy_dir_a: OptionalPlace = phrases.source_strategy("a")
    strategy_dir_b: OptionalPlace = phrases.source_strategy("b")
    parallel_config_a: OptionalPlace = phrases.source_config("a")
    parallel_config_b: OptionalPlace = phrases.source_config("b")
    layout_a: str | None = phrases.layout_of("`a`")
    layout_b: str | None = phrases.layout_of("`b`")
    after_cast: str | None = option(
        "cast the floating-point weights of `a` to this first; where dtypes differ then, values "
        "are compared",
        choices="fp16|bf16|fp32|fp64",
        completes="dtype",
    )
    weights_only: bool = flag("ignore optimizer state and counters")
    dequantise: bool = flag(
        "undo the scales of `b`, too, and say how far its quantised weights are from those of `a`"
    )


class Check(shared.Workers):
    """Whether an output is still what was written."""

    path: Place = required("an output of ckptforge: a file, or a directory", kw_only=False)


class Verify(shared.Reaching):
    """Whether MindSpore computes what transformers does, or what two models compute."""

    hf_dir: Place = required(phrases.HF_DIR, kw_only=False)
    ms: Place = required(f"{phrases.MS}; or another Hugging Face directory", kw_only=False)
    strategy_dir: OptionalPlace = phrases.source_strategy("ms")
    parallel_config: OptionalPlace = phrases.source_config("ms")
    layout: str | None = phrases.layout_of("`ms`", "mindspore")
    device: str = option("where MindSpore computes", default="cpu", choices="cpu|ascend[:N]")
    compute: Literal["fp32", "fp16", "bf16"] = option("precision on both sides", default="fp32")
    layers: Sequence[int] | None = option(
        "check only these layers, numbers in order, each with the output of the one checked before "
        "it",
        unset="all, and the logits",
        metavar="0,1,31",
    )
    tokens: int | Sequence[int] | None = option(
        "how many random tokens, or their ids",
        unset="256 for small models, else 32",
        metavar="N|ID,ID,…",
    )
    text: str | None = option(
        "tokens from a text, or from the file of @FILE, by the tokenizer in `hf_dir`",
        metavar="TEXT|@FILE",
    )
    generate: int = option(
        "continue greedily by so many tokens on both sides", default=0, bounds=(0, 1000)
    )
    say: Say | None = option("called with a line of text for each layer", hidden=True)


class Finish(shared.Workers):
    """Publishing what the parts of a job have written."""

    out: Place = required("the output that the parts were run for", kw_only=False)
    check: bool = flag("hash what the parts wrote again, instead of trusting their ledgers")
    overwrite: bool = flag("replace an existing output")
    command: str | None = option("the command line, for messages", hidden=True)


class Clean(shared.Reaching):
    """What interrupted runs left."""

    directory: Place = required(
        "where the outputs were being made, or the unfinished output itself",
        metavar="DIR",
        kw_only=False,
    )
    dry_run: bool = flag("say what is there and remove nothing")


class MappingShow(Options):
    """One layout of a table."""

    name: Place = required("a shipped table, or a .toml file", kw_only=False, completes="model")
    layout: str | None = option(
        "the layout to show", unset="MindSpore's first", metavar="LAYOUT", completes="layout"
    )


class MappingCheck(Options):
    """Whether a table keeps all rules."""

    file: Place = required(
        "a .toml file, or the name of a shipped table", kw_only=False, completes="model"
    )
    config: OptionalPlace = option(
        "a config.json, or its directory: count tensors and parameters", metavar="JSON"
    )
