"""What the verbs that write are called with."""

from __future__ import annotations

from typing import Literal

from ckptforge.verbs.options.option import OptionalPlace, Place, flag, option, required
from ckptforge.verbs.options.shared import (
    FIRST_LAYOUT,
    HF_DIR,
    MS,
    MS_DIR,
    NO_CONFIG,
    OUT,
    OUT_DIR,
    TARGET_CONFIG,
    Configured,
    Converting,
    Described,
    Mapped,
    MindSporeOutput,
    Replicas,
    Resharding,
    Running,
    Shards,
    Stepped,
    Unmapped,
    dtype_of,
    layout_of,
    mindspore_layout,
    source_config,
    source_strategy,
    target_config,
    target_strategy,
)


class ToMs(MindSporeOutput, Configured, Converting):
    """From a Hugging Face directory to a MindSpore checkpoint."""

    hf_dir: Place = required(HF_DIR, kw_only=False)
    out: Place = required(OUT, kw_only=False)
    layout: str | None = mindspore_layout("how MindSpore is to hold the model", FIRST_LAYOUT)
    strategy_dir: OptionalPlace = target_strategy()
    parallel_config: OptionalPlace = target_config()


class ToTorch(Shards, Configured, Converting):
    """From a MindSpore checkpoint to a Hugging Face directory."""

    ms: Place = required(MS, kw_only=False)
    out_dir: Place = required(OUT_DIR, kw_only=False)
    layout: str = option(
        "the layout that `ms` has, auto for the one that its names and shapes fit",
        default="auto",
        choices="auto|dense|gmm|…",
        completes="mindspore",
    )
    hf_layout: str | None = option(
        "the layout to write",
        unset="as the original directory had it, else hub",
        choices="hub|fused",
        completes="huggingface",
    )
    strategy_dir: OptionalPlace = source_strategy("ms")
    parallel_config: OptionalPlace = source_config("ms")
    from_main_params: bool = flag(
        "take the optimizer's float32 weights, main_param.*, in place of those that were rounded"
    )
    allow_no_config: bool = flag(NO_CONFIG)


class Convert(MindSporeOutput, Shards, Configured, Converting):
    """From any layout to any other of the same model."""

    source: Place = required(
        "any checkpoint: a Hugging Face directory, a MindSpore file or directory, rank directories",
        metavar="IN",
        kw_only=False,
    )
    out: Place = required(OUT, kw_only=False)
    to: str = required("the layout to write", metavar="LAYOUT", completes="layout")
    from_: str | None = layout_of("`source`")
    src_strategy_dir: OptionalPlace = source_strategy("source")
    src_parallel_config: OptionalPlace = source_config("source")
    dst_strategy_dir: OptionalPlace = target_strategy()
    dst_parallel_config: OptionalPlace = target_config()


class Merge(Described, Replicas, MindSporeOutput, Resharding):
    """From the rank directories of a job to one checkpoint."""

    ms_dir: Place = required(MS_DIR, kw_only=False)
    out: Place = required(OUT, kw_only=False)
    strategy_dir: OptionalPlace = source_strategy("ms_dir", "what its manifest says")
    parallel_config: OptionalPlace = source_config("ms_dir")


class Split(MindSporeOutput, Resharding):
    """From one checkpoint to the rank directories of a job."""

    ms: Place = required(MS, kw_only=False)
    out_dir: Place = required(OUT_DIR, kw_only=False)
    strategy_dir: OptionalPlace = target_strategy()
    parallel_config: OptionalPlace = target_config()
    layout: str | None = layout_of("the input, for a parallel configuration", "mindspore")


class Reshard(Described, Replicas, MindSporeOutput, Resharding):
    """From the rank directories of one job to those of another."""

    ms_dir: Place = required(MS_DIR, kw_only=False)
    out_dir: Place = required(OUT_DIR, kw_only=False)
    src_strategy_dir: OptionalPlace = source_strategy("ms_dir", "what its manifest says")
    src_parallel_config: OptionalPlace = source_config("ms_dir")
    dst_strategy_dir: OptionalPlace = target_strategy()
    dst_parallel_config: OptionalPlace = target_config()


class Strategy(Configured, Mapped, Unmapped, Stepped, Running):
    """Strategy files of a job."""

    out_dir: Place = required(OUT_DIR, kw_only=False)
    parallel_config: Place = required(TARGET_CONFIG, metavar="FILE")
    like: Place = required(
        "a model of the kind and size that the job holds, of Hugging Face or MindSpore, whole",
        metavar="HF_DIR_OR_MS",
    )
    layout: str | None = mindspore_layout(
        "how the job's network holds it",
        f"as `like` does where that is MindSpore's; else {FIRST_LAYOUT}",
    )
    format: Literal["ckpt", "json"] = option(
        "format of the strategy files; ckpt is protobuf", default="ckpt"
    )
    dtype: str | None = dtype_of("the dtype that the job holds its weights in")
