"""Options that several verbs share, a record for each group that goes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckptforge.verbs.options.option import Format, OptionalPlace, Progress, option
from ckptforge.verbs.options.record import Options


class Workers(Options):
    """How many work, in how much memory, and who hears of it."""

    workers: int | None = option(
        "number of worker threads", default=None, unset="one per core, at most 8"
    )
    memory: int | str | None = option(
        "memory for the buffers of all workers, in bytes or as 512MB",
        default=None,
        unset="128MiB",
        metavar="SIZE",
    )
    progress: Progress | None = option(
        "called as progress(done, total), in bytes, while it runs; an exception from it ends the "
        "run",
        default=None,
        hidden=True,
    )


class Running(Workers):
    """How a job is run."""

    overwrite: bool = option(
        "replace an existing output, and what an interrupted run left of one", default=False
    )
    resume: bool = option(
        "continue where an interrupted run of the same command stopped", default=False
    )
    dry_run: bool = option(
        "show the plan (outputs, tensors, bytes, memory, what is left out) and write nothing",
        default=False,
    )
    no_hash: bool = option(
        "compute no hashes: the manifest has none, and the run can't be resumed", default=False
    )
    command: str | None = option(
        "the command line to be noted in the manifest", default=None, hidden=True
    )


class Mapped(Options):
    """The mapping table."""

    model: str | None = option(
        "the mapping to use",
        default=None,
        unset="detected from config.json or the tensor names",
        metavar="NAME",
        completes="model",
    )
    mapping: OptionalPlace = option(
        "a mapping table of your own, a TOML file (docs/mappings.md)", default=None, metavar="FILE"
    )


class Stepped(Options):
    """Which of several checkpoints."""

    step: int | None = option(
        "training step to use when a directory holds several", default=None, unset="the last"
    )


class Overflow(Options):
    """Infinities."""

    allow_overflow: bool = option("allow casts that overflow to infinity", default=False)


class Casting(Overflow):
    """What the numbers become."""

    dtype: str | None = option(
        "cast the floating-point weights, and count what that changes",
        default="keep",
        choices="keep|fp16|bf16|fp32|fp64",
        completes="dtype",
    )
    weights_only: bool = option("drop optimizer state and counters", default=False)


class Lora(Options):
    """LoRA adapters."""

    merge_lora: OptionalPlace = option(
        "add this LoRA adapter (PEFT's directory, or a MindSpore checkpoint) to the weights, in "
        "float32",
        default=None,
        metavar="ADAPTER",
    )
    adapter: bool = option(
        "convert only the LoRA adapter that the input holds beside its weights", default=False
    )
    lora_alpha: float | None = option(
        "the adapter's lora_alpha, where it doesn't record that (MindSpore's), or instead of what "
        "it records",
        default=None,
        metavar="X",
    )


class Unmapped(Options):
    """Tensors that the mapping doesn't know."""

    allow_unmapped: bool = option(
        "leave out tensors that the mapping doesn't know, except heads and parts of quantised "
        "weights, instead of refusing",
        default=False,
    )
    drop: Sequence[str] = option(
        "leave out unknown tensors of these names (globs), also heads and scales, which "
        "`allow_unmapped` refuses",
        default=(),
        metavar="GLOB",
    )


class Vocabulary(Options):
    """Rows of the vocabulary."""

    trim_vocab: bool = option(
        "cut off rows of the embedding and the head beyond config.json's vocab_size", default=False
    )


class Converting(Casting, Stepped, Lora, Unmapped, Vocabulary, Mapped, Running):
    """What all conversions through a mapping take."""


class Resharding(Casting, Stepped, Mapped, Running):
    """What all changes of a split take."""


class MindSporeOutput(Options):
    """Files of MindSpore that are written."""

    format: Format | None = option(
        "format of an output directory; unified: MindSpore's unified safetensors",
        default=None,
        unset="the ending of the output, else ckpt",
    )
    prefix: str = option(
        "start of file names in an output directory: rank_0/<prefix>0.ckpt",
        default="checkpoint_",
        metavar="P",
    )


class Shards(Options):
    """Files of Hugging Face that are written."""

    max_shard_size: int | str | None = option(
        "largest weight file, in bytes or as 5GB",
        default=None,
        unset="as the original directory had it, else 5GB",
        metavar="SIZE",
    )


class Configured(Options):
    """Where the config is."""

    config: OptionalPlace = option(
        "where config.json and tokenizer are, if the checkpoint has no manifest",
        default=None,
        metavar="HF_DIR",
    )


class Described(Options):
    """What an input is, for a parallel configuration of it."""

    layout: str | None = option(
        "the layout of the input, for a parallel configuration",
        default=None,
        unset="detected from its names and shapes",
        metavar="LAYOUT",
        completes="mindspore",
    )
    config: OptionalPlace = option(
        "where config.json is, if a parallel configuration of the input needs it",
        default=None,
        metavar="HF_DIR",
    )


class Replicas(Options):
    """Copies of one tensor in several ranks."""

    check_replicas: bool = option("compare all replicas instead of reading one", default=False)


def strategy(meaning: str, unset: str = "") -> Any:
    """An option that names a strategy: a file, or the directory of its ranks' files."""
    return option(meaning, default=None, unset=unset, metavar="DIR_OR_FILE")


def source_config(source: str) -> Any:
    """An option that names the parallel configuration of an input."""
    return option(
        f"`{source}` holds the rank directories of the job with this parallel configuration, of a "
        "model that a mapping knows",
        default=None,
        metavar="FILE",
    )


def target_config(default: Any = None) -> Any:
    """An option that names the parallel configuration of an output."""
    return option(
        "shard for this parallel configuration: a MindFormers YAML, or a file with the same keys",
        default=default,
        metavar="FILE",
    )
