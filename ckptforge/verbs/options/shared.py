"""Options that several verbs share, a record for each group that goes together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ckptforge.verbs.options.option import OptionalPlace, Progress, Words, flag, option
from ckptforge.verbs.options.phrases import (
    DCP,
    MEGATRON,
    MINDFORMERS,
    PARALLEL_CONFIGS,
    dtype_of,
    layout_of,
)
from ckptforge.verbs.options.record import Options


class Reaching(Options):
    """Where a service is."""

    endpoint: str | None = option(
        "the address of the service that s3:// and obs:// are at",
        unset="what AWS_ENDPOINT_URL, or OBS_ENDPOINT for obs://, says, else Amazon's",
        metavar="URL",
    )

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        if self.endpoint is not None:
            from ckptforge.storage.endpoints import endpoints_of

            endpoints_of(self.endpoint, ())  # which refuses what is none


class Carded(Options):
    """Whether the model card is written to."""

    no_card: bool = flag("leave README.md as it is, instead of adding how the output was made")


class Workers(Reaching):
    """How many work, in how much memory, and who hears of it."""

    workers: int | None = option("number of worker threads", unset="one per core, at most 8")
    memory: int | str | None = option(
        "memory for the buffers of all workers, in bytes or as 512MB",
        unset="128MiB",
        metavar="SIZE",
    )
    progress: Progress | None = option(
        "called as progress(done, total), in bytes, while it runs; an exception from it ends the "
        "run",
        hidden=True,
    )


class Running(Workers):
    """How a job is run."""

    overwrite: bool = flag("replace an existing output, and what an interrupted run left of one")
    resume: bool = flag("continue where an interrupted run of the same command stopped")
    dry_run: bool = flag(
        "show the plan (outputs, tensors, bytes, memory, what is left out) and write nothing"
    )
    io: str = option(
        "how this machine's disks are read and written: through the system's page cache, or past "
        "it, which leaves what others have there",
        default="buffered",
        choices="buffered|direct",
    )
    no_hash: bool = flag(
        "compute no hashes: the manifest has none, and the run can't be resumed",
        clashes={
            "resume": "goes by the hashes of what was written",
            "part": "needs hashes",
            "dask": "needs hashes",
            "executor": "needs hashes",
            "consume": "needs hashes",
        },
    )
    command: str | None = option("the command line to be noted in the manifest", hidden=True)


class Parted(Running):
    """Which part of a job this process does."""

    consume: bool = flag(
        "remove each input file as soon as all that was made of it is on the disk, where there is "
        "no room for two models; `resume` goes on without them",
        clashes={
            "part": "is one of several processes that read the inputs",
            "dask": "has several processes read the inputs",
            "executor": "has several processes read the inputs",
        },
    )
    dask: str | None = option(
        "have the workers of this Dask scheduler, or N processes on this machine, do the work; "
        "all share the output's directory or bucket. `workers` and `memory` are those of each unit",
        metavar="tcp://…|local:N",
    )
    executor: Any = option(
        "have an executor of concurrent.futures, or one like them, do the work: processes, MPI, …",
        hidden=True,
        clashes={"dask": "says who works, too"},
    )
    part: str | None = option(
        "do only this part of the job, as one of N processes that share the output's directory; "
        "auto reads the variables of Slurm, torchrun, MPI, Kubernetes (auto/N) and ModelArts",
        metavar="I/N|auto",
        clashes={
            "dask": "spreads one run over its workers",
            "executor": "spreads one run over its workers",
        },
    )
    steal: bool = flag(
        "with `part`: when it is done, take over what is left of parts whose heartbeat has stopped",
        needs=("part",),
    )
    steal_after: float = option(
        "with `steal`: seconds without a heartbeat after which a part is taken for dead",
        default=60.0,
        needs=("steal",),
    )


class Mapped(Options):
    """The mapping table."""

    model: str | None = option(
        "the mapping to use",
        unset="detected from config.json or the tensor names",
        metavar="NAME",
        completes="model",
    )
    mapping: OptionalPlace = option(
        "a mapping table of your own, a TOML file (docs/mappings.md)", metavar="FILE"
    )


class Stepped(Options):
    """Which of several checkpoints."""

    step: int | None = option(
        "training step to use when a directory holds several", unset="the last"
    )


class Overflow(Options):
    """Infinities."""

    allow_overflow: bool = flag("allow casts that overflow to infinity")


class Casting(Overflow):
    """What the numbers become."""

    dtype: str | None = dtype_of("cast the floating-point weights, and count what that changes")
    weights_only: bool = flag("drop optimizer state and counters")


class Lora(Options):
    """LoRA adapters."""

    merge_lora: OptionalPlace = option(
        "add this LoRA adapter (PEFT's directory, or a MindSpore checkpoint) to the weights, in "
        "float32",
        metavar="ADAPTER",
    )
    adapter: bool = flag("convert only the LoRA adapter that the input holds beside its weights")
    lora_alpha: float | None = option(
        "the adapter's lora_alpha, where it doesn't record that (MindSpore's), or instead of what "
        "it records",
        metavar="X",
    )


class Unmapped(Options):
    """Tensors that the mapping doesn't know."""

    allow_unmapped: bool = flag(
        "leave out tensors that the mapping doesn't know, except heads and parts of quantised "
        "weights, instead of refusing"
    )
    drop: Sequence[str] = option(
        "leave out unknown tensors of these names (globs), also heads and scales, which "
        "`allow_unmapped` refuses",
        default=(),
        metavar="GLOB",
    )


class Vocabulary(Options):
    """Rows of the vocabulary."""

    trim_vocab: bool = flag(
        "cut off rows of the embedding and the head beyond config.json's vocab_size"
    )


class Converting(Casting, Stepped, Lora, Unmapped, Vocabulary, Mapped, Parted):
    """What all conversions through a mapping take."""


class Resharding(Casting, Stepped, Mapped, Parted):
    """What all changes of a split take."""


def _formats() -> Iterator[str]:
    from ckptforge.formats.registry import endings

    return (ending.removeprefix(".") for ending in endings())


class MindSporeOutput(Options):
    """Files of MindSpore that are written."""

    format: str | None = option(
        "format of an output directory; unified: MindSpore's unified safetensors; mindformers: an "
        "iteration directory of MindFormers since r1.7, whole or for the ranks of a job; megatron: "
        "one of Megatron's, in a layout of its; dcp: torch.distributed.checkpoint's directory",
        unset="the ending of the output, else ckpt",
        words=Words(("ckpt", "safetensors", "unified", MINDFORMERS, MEGATRON, DCP), _formats),
    )
    iteration: int | None = option(
        "with the formats mindformers and megatron: the number of the iteration",
        unset="that of an input that is an iteration, else 0 or 1",
        metavar="N",
    )
    mindformers: str | None = option(
        "with the format mindformers: the version of MindFormers that is to load it",
        unset="2.1",
        metavar="VERSION",
    )
    remove_redundancy: bool = flag(
        "with the format mindformers: write what several ranks hold once"
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
        unset="as the original directory had it, else 5GB",
        metavar="SIZE",
    )


class Released(Options):
    """Files of releases that are written."""

    shards: int = option(
        "with layouts of Meta's: how many model-parallel shards, consolidated.00.pth and so on",
        default=1,
        bounds=(1, 256),
        metavar="N",
    )


class Quantising(Options):
    """Weights that are written as codes."""

    quantise: Sequence[str] = option(
        "write the weights of the layers as codes with scales: fp8-block128, mxfp4, mxfp8 or "
        "w8a8-dynamic; with WHAT= only a kind of tensor of the mapping, or names (globs) "
        "(docs/quantised.md)",
        default=(),
        metavar="[WHAT=]KIND",
        completes="code",
    )


class Configured(Options):
    """Where the config is."""

    config: OptionalPlace = option(
        "where config.json and tokenizer are, if the checkpoint has no manifest", metavar="HF_DIR"
    )


class Described(Options):
    """What an input is, for a parallel configuration of it or of the output."""

    layout: str | None = layout_of(
        "the input, for a parallel configuration", "mindspore", PARALLEL_CONFIGS
    )
    config: OptionalPlace = option(
        "where config.json is, if a parallel configuration of the input needs it",
        metavar="HF_DIR",
        needs=PARALLEL_CONFIGS,
    )


class Replicas(Options):
    """Copies of one tensor in several ranks."""

    check_replicas: bool = flag("compare all replicas wholly, instead of the first bytes of a few")
    allow_unequal_replicas: bool = flag(
        "take the lowest rank's of replicas that differ, which are refused else",
        clashes={"check_replicas": "refuses replicas that differ"},
    )
