"""What the verbs that write are called with."""

from __future__ import annotations

from typing import Literal

from ckptforge.verbs.options import phrases, shared
from ckptforge.verbs.options.option import OptionalPlace, Place, flag, option, required


class ToMs(shared.MindSporeOutput, shared.Configured, shared.Converting):
    """From a Hugging Face directory to a MindSpore checkpoint."""

    hf_dir: Place = required(phrases.HF_DIR, kw_only=False)
    out: Place = required(phrases.OUT, kw_only=False)
    layout: str | None = phrases.mindspore_layout(
        "how MindSpore is to hold the model", phrases.FIRST_LAYOUT
    )
    strategy_dir: OptionalPlace = phrases.TARGET_STRATEGY
    parallel_config: OptionalPlace = phrases.TARGET_CONFIG


class ToTorch(
    shared.Carded, shared.Quantising, shared.Shards, shared.Configured, shared.Converting
):
    """From a MindSpore checkpoint to a Hugging Face directory."""

    ms: Place = required(phrases.MS, kw_only=False)
    out_dir: Place = required(phrases.OUT_DIR, kw_only=False)
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
    strategy_dir: OptionalPlace = phrases.source_strategy("ms")
    parallel_config: OptionalPlace = phrases.source_config("ms")
    format: Literal["huggingface", "dcp"] = option(
        "huggingface: safetensors as transformers loads them; dcp: torch.distributed.checkpoint's "
        "directory",
        default="huggingface",
    )
    from_main_params: bool = flag(
        "take the optimizer's float32 weights, main_param.*, in place of those that were rounded"
    )
    allow_no_config: bool = flag(phrases.NO_CONFIG)


class Convert(
    shared.MindSporeOutput,
    shared.Quantising,
    shared.Released,
    shared.Shards,
    shared.Configured,
    shared.Converting,
):
    """From any layout to any other of the same model."""

    source: Place = required(
        "any checkpoint: a Hugging Face directory, a MindSpore file or directory, rank directories",
        metavar="IN",
        kw_only=False,
    )
    out: Place = required(phrases.OUT, kw_only=False)
    to: str = required("the layout to write", metavar="LAYOUT", completes="layout")
    from_: str | None = phrases.layout_of("`source`")
    src_strategy_dir: OptionalPlace = phrases.source_strategy("source")
    src_parallel_config: OptionalPlace = phrases.source_config("source")
    dst_strategy_dir: OptionalPlace = phrases.TARGET_STRATEGY
    dst_parallel_config: OptionalPlace = phrases.TARGET_CONFIG


class Merge(shared.Described, shared.Replicas, shared.MindSporeOutput, shared.Resharding):
    """From the rank directories of a job to one checkpoint."""

    ms_dir: Place = required(phrases.MS_DIR, kw_only=False)
    out: Place = required(phrases.OUT, kw_only=False)
    strategy_dir: OptionalPlace = phrases.source_strategy("ms_dir", "what its manifest says")
    parallel_config: OptionalPlace = phrases.source_config("ms_dir")


class Split(shared.MindSporeOutput, shared.Resharding):
    """From one checkpoint to the rank directories of a job."""

    ms: Place = required(phrases.MS, kw_only=False)
    out_dir: Place = required(phrases.OUT_DIR, kw_only=False)
    strategy_dir: OptionalPlace = phrases.TARGET_STRATEGY
    parallel_config: OptionalPlace = phrases.TARGET_CONFIG
    layout: str | None = phrases.layout_of(
        "the input, for a parallel configuration", "mindspore", ("parallel_config",)
    )


class Reshard(shared.Described, shared.Replicas, shared.MindSporeOutput, shared.Resharding):
    """From the rank directories of one job to those of another."""

    ms_dir: Place = required(phrases.MS_DIR, kw_only=False)
    out_dir: Place = required(phrases.OUT_DIR, kw_only=False)
    src_strategy_dir: OptionalPlace = phrases.source_strategy("ms_dir", "what its manifest says")
    src_parallel_config: OptionalPlace = phrases.source_config("ms_dir")
    dst_strategy_dir: OptionalPlace = phrases.TARGET_STRATEGY
    dst_parallel_config: OptionalPlace = phrases.TARGET_CONFIG


class Strategy(shared.Configured, shared.Mapped, shared.Unmapped, shared.Stepped, shared.Running):
    """Strategy files of a job."""

    out_dir: Place = required(phrases.OUT_DIR, kw_only=False)
    parallel_config: Place = required(phrases.JOB, metavar="FILE")
    like: Place = required(
        "a model of the kind and size that the job holds, of Hugging Face or MindSpore, whole",
        metavar="HF_DIR_OR_MS",
    )
    layout: str | None = phrases.mindspore_layout(
        "how the job's network holds it",
        f"as `like` does where that is MindSpore's; else {phrases.FIRST_LAYOUT}",
    )
    format: Literal["ckpt", "json"] = option(
        "format of the strategy files; ckpt is protobuf", default="ckpt"
    )
    dtype: str | None = phrases.dtype_of("the dtype that the job holds its weights in")
