"""The keyword arguments that several public functions share, and what each means: written here
once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypedDict

PathLike = str | Path
Format = Literal["ckpt", "safetensors", "unified"]
Progress = Callable[[int, int], None]


class Running(TypedDict, total=False):
    """How a job is run."""

    overwrite: bool
    resume: bool
    dry_run: bool
    no_hash: bool
    workers: int | None
    memory: int | str | None
    progress: Progress | None
    command: str | None


class Mapped(Running, total=False):
    """Running, what is cast, and the mapping table."""

    dtype: str | None
    allow_overflow: bool
    weights_only: bool
    step: int | None
    model: str | None
    mapping: PathLike | None


class Options(Mapped, total=False):
    """All that the conversions take."""

    allow_unmapped: bool
    drop: Sequence[str]
    merge_lora: PathLike | None
    adapter: bool
    lora_alpha: float | None
    trim_vocab: bool


class Modelled(Running, total=False):
    """Running, and a model that isn't written itself."""

    dtype: str | None
    step: int | None
    model: str | None
    mapping: PathLike | None
    allow_unmapped: bool
    drop: Sequence[str]


# What isn't here is False where it is a bool, and None.
DEFAULTS: dict[str, object] = {"dtype": "keep", "drop": ()}

MEANINGS = {
    "hf_dir": "a Hugging Face directory: safetensors (one file, or shards with their index) and "
    "config.json.",
    "ms": "a MindSpore checkpoint: a .ckpt or .safetensors file, a directory with one, or rank "
    "directories.",
    "ms_dir": "the rank_<r>/ directories of a job.",
    "out": "what is written: a file where it ends in .ckpt or .safetensors, else a directory.",
    "out_dir": "the directory that is written.",
    "layout": "the layout of the input, where its names and shapes leave that open.",
    "format": '"ckpt", "safetensors" or "unified" (MindSpore\'s unified safetensors), for an '
    "output directory; by default ckpt, or "
    "the ending of `out`.",
    "prefix": "beginning of the file names in an output directory: rank_0/<prefix>0.ckpt.",
    "max_shard_size": 'largest weight file, in bytes or as "5GB"; by default as the original '
    "directory had it, else 5 GB.",
    "config": "a Hugging Face directory, or its config.json, for a checkpoint that has neither "
    "manifest nor config.json.",
    "strategy_dir": "the strategy of a job: a MindSpore strategy file, or the directory with those "
    "of its ranks.",
    "parallel_config": "a MindFormers YAML, or a file of the same keys (data_parallel, "
    "model_parallel, …), in place of a strategy.",
    "src_strategy_dir": "the strategy that the input was cut by: a file, or a directory.",
    "dst_strategy_dir": "the strategy to cut the output by: a file, or a directory.",
    "src_parallel_config": "a parallel configuration in place of `src_strategy_dir`.",
    "dst_parallel_config": "a parallel configuration in place of `dst_strategy_dir`.",
    "check_replicas": "compare all replicas of a tensor instead of reading one.",
    "dtype": '"keep", "fp16", "bf16", "fp32" or "fp64": what floating-point weights are cast to; a '
    "cast is counted in the result's "
    "`audit`.",
    "allow_overflow": "write infinities where a cast makes them out of finite values, instead of "
    "`CastOverflowError`.",
    "weights_only": "leave out optimizer state and counters.",
    "step": "the training step to take where a directory holds several checkpoints; by default the "
    "last.",
    "model": "the name of the mapping table; by default detected from config.json or the tensors' "
    "names.",
    "mapping": "a mapping table of your own, a TOML file.",
    "allow_unmapped": "leave out tensors that the mapping doesn't know, except heads and parts of "
    "quantised weights, instead of "
    "`UnmappedTensorsError`.",
    "drop": "globs of names that the mapping doesn't know and that are dropped anyway, heads and "
    "scales included.",
    "merge_lora": "a LoRA adapter (PEFT's directory, or a MindSpore checkpoint) to add to the "
    "weights, in float32.",
    "adapter": "convert only the LoRA adapter that the input holds beside its weights.",
    "lora_alpha": "lora_alpha, where the adapter doesn't record it (MindSpore's), or instead of "
    "what it records.",
    "trim_vocab": "cut off rows of the embedding and the head beyond vocab_size.",
    "overwrite": "replace an existing output, and what an interrupted run left of one.",
    "resume": "continue where an interrupted run of the same call stopped.",
    "dry_run": "make and check the plan, and write nothing.",
    "no_hash": "make no hashes: the manifest has none, and the run can't be resumed.",
    "workers": "number of worker threads; by default one for each core, at most 8.",
    "memory": 'total buffer memory, in bytes or as "512MB"; by default 128MiB.',
    "progress": "called as progress(done, total), in bytes, while it runs; an exception from it "
    "ends the run.",
    "command": "the command line to be noted in the manifest.",
}
