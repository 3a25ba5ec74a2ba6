"""MindFormers' convert_weight.py and transform_ckpt.py, with their flags, as calls of our own
verbs.

Source: MindFormers r1.0 … r1.8.0 and master (fd4deebc1); see `mindformers_flags.py` for the
scripts.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ckptforge.errors import UsageError
from ckptforge.foreign.paths import is_directory, is_file
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs import convert as verbs
from ckptforge.verbs import reshard as resharding
from ckptforge.verbs.call import Call
from ckptforge.verbs.mindformers_flags import (
    CONVERT_NOT_NEEDED,
    CONVERT_REFUSED,
    TRANSFORM_NOT_NEEDED,
    TRANSFORM_REFUSED,
    ConvertFlags,
    TransformFlags,
    not_needed,
    refuse,
)

# where transform_checkpoint.py writes without --dst_checkpoint_dir
_TRANSFORMED = "transformed_checkpoint"


def convert_weight(flags: ConvertFlags) -> Call:
    """The call that does what convert_weight.py does with these flags: the unified script's with
    `input_path`, else those of the script for inference.

    Without `dtype` the unified script writes fp32, the other fp16, and from `pre_ckpt_path` it
    keeps the dtype. Raises `UsageError` for flags that don't go together, and for those that aren't
    honoured.
    """
    refuse(flags.others, CONVERT_REFUSED)
    flags = _with_config(flags).replace(layout=_layout(flags), model=_table_name(flags.model))
    unified = flags.input_path is not None or flags.output_path is not None or flags.reversed
    call = _unified(flags) if unified else _of_one_model(flags)
    return replace(call, notes=not_needed(flags.others, CONVERT_NOT_NEEDED))


def _with_config(flags: ConvertFlags) -> ConvertFlags:
    """MindFormers' YAML is one of the other flags: sizes are read from config.json."""
    if flags.config is None or flags.config.endswith(".json") or is_directory(Path(flags.config)):
        return flags
    return flags.replace(config=None, others={**flags.others, "config": flags.config})


def _table_name(model: str | None) -> str | None:
    """The table that convert_weight.py knows by this name, else the name itself."""
    tables = () if model is None else shipped_tables(model)
    return next((table.name for table in tables if model in table.aliases), model)


def _layout(flags: ConvertFlags) -> str | None:
    """The layout that the flags name together. Raises `UsageError` for a contradiction."""
    layout = flags.layout
    if layout is None and flags.qkv_concat:
        raise UsageError(
            "--qkv_concat: the versions of MindFormers hold concatenated rows in different orders "
            "under one name. Name the layout of your version with --layout; `ckptforge mapping "
            "list` shows the layouts."
        )
    if layout is None:
        return "gmm" if flags.use_gmm else None
    words = layout.split("-")
    contradicted = {"use_gmm": "gmm" in words}
    if words[0] in ("dense", "gmm"):
        contradicted["qkv_concat"] = "qkv" in words
    for name, meant in contradicted.items():
        given = getattr(flags, name)
        if given is not None and given != meant:
            raise UsageError(f"--{name}={given} contradicts --layout {layout}; omit one of them.")
    return layout


def _unified(flags: ConvertFlags) -> Call:
    """A call of the unified script, or of convert_reversed.py."""
    source, out = flags.input_path, flags.output_path
    if source is None and out is None:
        source, out = flags.mindspore_ckpt_path, flags.torch_ckpt_dir  # convert_reversed.py
    else:
        others = ("torch_ckpt_dir", "mindspore_ckpt_path", "pre_ckpt_path")
        if mixed := next((name for name in others if getattr(flags, name) is not None), None):
            raise UsageError(
                f"--{mixed} belongs to the inference script, --input_path and --output_path to the "
                "unified one; use the flags of one."
            )
    if source is None or out is None:
        raise UsageError("convert-weight needs --input_path and --output_path.")
    dtype = flags.dtype or "fp32"
    if flags.reversed:
        return _to_torch(flags, source, out, dtype)
    if flags.strategy_dir not in (None, "None"):
        raise UsageError(
            "--strategy_dir goes with --reversed; to write rank directories use `ckptforge to-ms "
            "--strategy-dir`."
        )
    if flags.qkv_concat:  # of a MindSpore checkpoint
        return _convert(flags, source, out, flags.layout, flags.dtype)
    return _to_ms(flags, source, out, dtype)


def _of_one_model(flags: ConvertFlags) -> Call:
    """A call of a script of one model, for inference or training."""
    out = flags.mindspore_ckpt_path
    if out is None or (flags.torch_ckpt_dir is None) == (flags.pre_ckpt_path is None):
        raise UsageError(
            "convert-weight needs --input_path and --output_path, or --mindspore_ckpt_path and one "
            "of --torch_ckpt_dir and --pre_ckpt_path."
        )
    if flags.strategy_dir not in (None, "None"):
        raise UsageError("--strategy_dir goes with --reversed.")
    if flags.torch_ckpt_dir is not None:
        return _to_ms(flags, flags.torch_ckpt_dir, out, flags.dtype or "fp16")
    assert flags.pre_ckpt_path is not None
    target = flags.layout or ("dense" if flags.use_gmm is False else "gmm")
    return _convert(flags, flags.pre_ckpt_path, out, target, flags.dtype)


def _to_ms(flags: ConvertFlags, source: str, out: str, dtype: str) -> Call:
    own = {"layout": flags.layout, "dtype": dtype, "format": flags.save_format}
    return Call("to-ms", verbs.to_ms, (source, out), _given(own, flags))


def _convert(
    flags: ConvertFlags, source: str, out: str, target: str | None, dtype: str | None
) -> Call:
    own = {"to": target, "dtype": dtype, "format": flags.save_format}
    return Call("convert", verbs.convert, (source, out), _given(own, flags))


def _to_torch(flags: ConvertFlags, source: str, out: str, dtype: str) -> Call:
    if flags.save_format == "ckpt":
        raise UsageError(
            "--save_format ckpt: with --reversed a Hugging Face directory is written, which holds "
            "safetensors."
        )
    # of a whole checkpoint there is none
    strategy = None if flags.strategy_dir == "None" or is_file(Path(source)) else flags.strategy_dir
    own = {"strategy_dir": strategy, "layout": flags.layout, "dtype": dtype}
    options = {**_given(own, flags), "allow_no_config": True}
    return Call("to-torch", verbs.to_torch, (source, out), options)


def _given(own: dict[str, Any], flags: ConvertFlags) -> dict[str, Any]:
    """The options of a call that are given: its own, and those of every conversion."""
    options = {**own, "model": flags.model, "config": flags.config}
    return {name: value for name, value in options.items() if value is not None}


def _with_words(flags: TransformFlags) -> TransformFlags:
    """The flags with the nameless arguments of transform_checkpoint.sh. Raises `UsageError`."""
    words = flags.words
    if not words:
        return flags
    if len(words) not in (6, 7) or (flags.src_ckpt_dir, flags.dst_ckpt_dir) != (None, None):
        raise UsageError(
            "transform-ckpt takes named flags, or as transform_checkpoint.sh SRC_CKPT SRC_STRATEGY "
            f"DST_CKPT_DIR DST_STRATEGY WORLD_SIZE PROCESS_NUM [PREFIX]; found {shlex.join(words)}."
        )
    source, source_strategy, out, strategy, world_size, processes = words[:6]
    return flags.replace(
        words=(),
        src_ckpt_dir=source,
        src_ckpt_strategy=source_strategy,
        dst_ckpt_dir=out,
        dst_ckpt_strategy=strategy,
        prefix=words[6] if len(words) > 6 else flags.prefix,
        others={**flags.others, "world_size": world_size, "transform_process_num": processes},
    )


def transform_ckpt(flags: TransformFlags) -> Call:
    """The call that does what transform_ckpt.py does with these flags: merge, split or reshard, by
    the strategies that are given; "None" and an empty text are none. Raises `UsageError` when there
    is neither, for flags that contradict each other, and for those that aren't honoured."""
    flags = _with_words(flags)
    refuse(flags.others, TRANSFORM_REFUSED)
    given = (flags.src_ckpt_strategy, flags.dst_ckpt_strategy)
    src, dst = (None if strategy in (None, "", "None") else strategy for strategy in given)
    source, out = flags.src_ckpt_dir, flags.dst_ckpt_dir or _TRANSFORMED
    if source is None:
        raise UsageError(
            "transform-ckpt needs --src_checkpoint (or --src_ckpt_dir), the checkpoint to read."
        )
    if src is None and dst is None:
        raise UsageError("transform-ckpt needs --src_ckpt_strategy, --dst_ckpt_strategy or both.")
    if src is not None and is_file(Path(source)):
        raise UsageError(
            f"{source}: is one file, but a source strategy describes rank directories. Name the "
            "directory that holds rank_0, rank_1, …; if the file holds the whole model, omit "
            "--src_strategy."
        )
    _check_processes(flags.others, dst)
    notes = not_needed(flags.others, TRANSFORM_NOT_NEEDED)
    if flags.dst_ckpt_dir is None:
        how = "as transform_checkpoint.py without --dst_checkpoint_dir does"
        notes = (f"written to {out}, {how}.", *notes)
    shared = {"prefix": flags.prefix}
    if flags.save_format is not None:
        shared["format"] = flags.save_format
    if src is not None and dst is not None:
        both = {"src_strategy_dir": src, "dst_strategy_dir": dst}
        return Call("reshard", resharding.reshard, (source, out), {**both, **shared}, notes)
    name, verb = ("merge", resharding.merge) if src is not None else ("split", resharding.split)
    return Call(name, verb, (source, out), {"strategy_dir": src or dst, **shared}, notes)


def _check_processes(given: Mapping[str, str], dst: str | None) -> None:
    """Raises `UsageError` for numbers of ranks and processes that can't be."""
    numbers = {}
    for flag in ("rank_id", "world_size", "transform_process_num", "npu_num_per_node"):
        if flag in given:
            least = 0 if flag == "rank_id" else 1
            if not re.fullmatch("[0-9]+", given[flag]) or int(given[flag]) < least:
                raise UsageError(
                    f"--{flag} {given[flag]}: expected a whole number of at least {least}."
                )
            numbers[flag] = int(given[flag])
    world_size, processes = numbers.get("world_size", 1), numbers.get("transform_process_num", 1)
    if world_size == 1:
        return
    if (rank := numbers.get("rank_id", 0)) >= world_size:
        raise UsageError(
            f"--rank_id {rank}: of a job with {world_size} ranks the last is {world_size - 1}."
        )
    if world_size % processes:
        raise UsageError(
            f"--transform_process_num {processes} doesn't divide --world_size {world_size}."
        )
    from ckptforge.parallel.strategy_files import read_strategy

    if dst is not None and (ranks := read_strategy(Path(dst)).ranks) != world_size:
        raise UsageError(
            f"--world_size {world_size}: {dst} is the strategy of a {ranks}-rank job, so {ranks} "
            "ranks would be written; give the strategy of the job that is to load them, or omit "
            "--world_size."
        )
