"""What options of several verbs say in the same words."""

from __future__ import annotations

from typing import Any

from ckptforge.verbs.options.option import Names, option

HF_DIR = (
    "a Hugging Face directory: safetensors (one file, or shards and their index) and config.json"
)
MS = "a MindSpore checkpoint: a .ckpt or .safetensors file, a directory with one, or of ranks"
MS_DIR = "the rank_<r>/ directories of a job"
OUT = "what is written: a file where it ends in .ckpt or .safetensors, else a directory"
OUT_DIR = "the directory that is written"
JOB = "shard for this parallel configuration: a MindFormers YAML, or a file with the same keys"
MINDFORMERS = "mindformers"  # of iteration directories
MEGATRON = "megatron"  # of those of Megatron's
DCP = "dcp"  # of torch.distributed.checkpoint's
NO_CONFIG = "write the weights alone where no config.json is known"
PARALLEL_CONFIGS = ("parallel_config", "src_parallel_config", "dst_parallel_config")
FIRST_LAYOUT = "the model's first MindSpore layout in `ckptforge mapping list`"


# The options that name the strategy, and the parallel configuration, of an output.
TARGET_STRATEGY: Any = option(
    "write rank directories for the job with this strategy: a file, or a directory",
    metavar="DIR_OR_FILE",
)
TARGET_CONFIG: Any = option(JOB, metavar="FILE")


def source_strategy(source: str, unset: str = "") -> Any:
    """The option that names the strategy of an input."""
    text = f"`{source}` holds the rank directories of the job with this strategy"
    return option(text, unset=unset, metavar="DIR_OR_FILE")


def source_config(source: str) -> Any:
    """The option that names the parallel configuration of an input."""
    text = (
        f"`{source}` holds the rank directories of the job with this parallel configuration, of a "
        "model that a mapping knows"
    )
    return option(text, metavar="FILE")


def layout_of(source: str, completes: Names = "layout", needs: tuple[str, ...] = ()) -> Any:
    """The option that names the layout of an input."""
    return option(
        f"the layout of {source}",
        unset="detected from names and shapes",
        metavar="LAYOUT",
        completes=completes,
        needs=needs,
    )


def dtype_of(meaning: str) -> Any:
    """The option that names a dtype for floating-point weights."""
    words = "keep|fp16|bf16|fp32|fp64"
    return option(meaning, default="keep", choices=words, completes="dtype")


def mindspore_layout(meaning: str, unset: str) -> Any:
    """The option that names a layout of MindSpore's to be written."""
    words = "dense|gmm|mcore|…"
    return option(meaning, unset=unset, choices=words, completes="mindspore")
