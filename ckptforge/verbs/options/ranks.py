"""What changes of a split are called with."""

from __future__ import annotations

from typing import Literal

from ckptforge.verbs.options.option import REQUIRED, OptionalPlace, Place, option
from ckptforge.verbs.options.shared import (
    Configured,
    Described,
    Mapped,
    MindSporeOutput,
    Replicas,
    Resharding,
    Running,
    Stepped,
    Unmapped,
    source_config,
    strategy,
    target_config,
)


class Merge(Described, Replicas, MindSporeOutput, Resharding):
    """From the rank directories of a job to one checkpoint."""

    ms_dir: Place = option("the rank_<r>/ directories of a job", kw_only=False)
    out: Place = option(
        "what is written: a file where it ends in .ckpt or .safetensors, else a directory",
        kw_only=False,
    )
    strategy_dir: OptionalPlace = strategy(
        "the strategy of the job: a file, or the directory of its ranks' files"
    )
    parallel_config: OptionalPlace = source_config("ms_dir")


class Split(MindSporeOutput, Resharding):
    """From one checkpoint to the rank directories of a job."""

    ms: Place = option(
        "a MindSpore checkpoint: a .ckpt or .safetensors file, or a directory with one",
        kw_only=False,
    )
    out_dir: Place = option("the directory that is written", kw_only=False)
    strategy_dir: OptionalPlace = strategy("the strategy of the target job: a file, or a directory")
    parallel_config: OptionalPlace = target_config()
    layout: str | None = option(
        "the layout of the input, for a parallel configuration",
        default=None,
        unset="detected from its names and shapes",
        metavar="LAYOUT",
        completes="mindspore",
    )


class Reshard(Described, Replicas, MindSporeOutput, Resharding):
    """From the rank directories of one job to those of another."""

    ms_dir: Place = option("the rank_<r>/ directories of a job", kw_only=False)
    out_dir: Place = option("the directory that is written", kw_only=False)
    src_strategy_dir: OptionalPlace = strategy(
        "the strategy that `ms_dir` was made under", unset="what its manifest says"
    )
    src_parallel_config: OptionalPlace = source_config("ms_dir")
    dst_strategy_dir: OptionalPlace = strategy("the strategy of the target job")
    dst_parallel_config: OptionalPlace = target_config()


class Strategy(Configured, Mapped, Unmapped, Stepped, Running):
    """Strategy files of a job."""

    out_dir: Place = option("the directory that is written", kw_only=False)
    parallel_config: Place = target_config(REQUIRED)
    like: Place = option(
        "a model of the kind and size that the job holds, of Hugging Face or MindSpore, whole",
        metavar="HF_DIR_OR_MS",
    )
    layout: str | None = option(
        "how the job's network holds it",
        default=None,
        unset="as `like` does where that is MindSpore's; else the first MindSpore layout in "
        "`ckptforge mapping list`",
        choices="dense|gmm|mcore|…",
        completes="mindspore",
    )
    format: Literal["ckpt", "json"] = option(
        "format of the strategy files; ckpt is protobuf", default="ckpt"
    )
    dtype: str | None = option(
        "the dtype that the job holds its weights in",
        default="keep",
        choices="keep|fp16|bf16|fp32|fp64",
        completes="dtype",
    )
