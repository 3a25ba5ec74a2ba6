"""What the verbs of surgery are called with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ckptforge.verbs.options.option import OptionalPlace, Place, flag, option, required
from ckptforge.verbs.options.phrases import (
    NO_CONFIG,
    OUT,
    TARGET_CONFIG,
    TARGET_STRATEGY,
    dtype_of,
    layout_of,
    source_config,
    source_strategy,
)
from ckptforge.verbs.options.shared import (
    Carded,
    Casting,
    Configured,
    Mapped,
    MindSporeOutput,
    Overflow,
    Parted,
    Quantising,
    Released,
    Running,
    Shards,
    Stepped,
    Vocabulary,
    Workers,
)

ANY = "any checkpoint: a file, a directory, rank directories, a Hugging Face directory"


class _Looked(Configured, Stepped, Mapped):
    """A checkpoint that is looked into."""

    strategy_dir: OptionalPlace = source_strategy("source")
    parallel_config: OptionalPlace = source_config("source")


class Extract(_Looked, Overflow, Running):
    """One tensor of a checkpoint as numpy's file."""

    source: Place = required(ANY, metavar="IN", kw_only=False)
    name: str = required("the tensor's name, in `layout` if one is given", kw_only=False)
    out: Place = required("the file that is written, which ends in .npy", kw_only=False)
    layout: str | None = option(
        "bring the model into this layout first", metavar="LAYOUT", completes="layout"
    )
    index: str | None = option(
        "which part of it, as numpy's index: 0:4,:,-1", unset="all of it", metavar="INDEX"
    )
    dtype: str | None = dtype_of("cast its numbers, and count what that changes")


def _edit(meaning: str, metavar: str) -> Any:
    return option(meaning, default=(), metavar=metavar, into="edits")


class Edit(
    Carded,
    MindSporeOutput,
    Quantising,
    Released,
    Shards,
    Casting,
    Configured,
    Stepped,
    Vocabulary,
    Mapped,
    Parted,
):
    """Surgery over named axes."""

    source: Place = required(ANY, metavar="IN", kw_only=False)
    out: Place = required(OUT, kw_only=False)
    take: Sequence[str] = _edit(
        "make an axis of some of its indexes: e=0,2,5, l=0-23,8-31 or e=@FILE.json, also with a "
        "list for each layer; an axis is the mapping's letter or its key of config.json",
        "AXIS=LIST",
    )
    merge: Sequence[str] = _edit(
        "make one index of each group of an axis, their mean: e=[[0,3],[1,2]]", "AXIS=GROUPS"
    )
    pad: Sequence[str] = _edit(
        "lengthen an axis to a size, V=152064 or V=multiple:128", "AXIS=SIZE"
    )
    fill: str = option(
        "what every `pad` fills with", default="zero", choices="zero|mean|copy:I|normal:STD,SEED"
    )
    expand: Sequence[str] = _edit(
        "make a dense model one with experts, of another mapping: 'TABLE experts=8 active=2 "
        "pieces=1 router=zero', all but the first as wanted",
        "'TABLE KEY=VALUE …'",
    )
    tie: bool = option("leave out the head, which must be the embedding", False, into="edits")
    untie: bool = option("add a head that is a copy of the embedding", False, into="edits")
    drop: Sequence[str] = _edit(
        "leave out kinds of tensors of the mapping, or names (globs)", "WHAT"
    )
    keep: Sequence[str] = _edit("keep only these kinds of tensors, or names (globs)", "WHAT")
    rename: Sequence[str] = _edit(
        "give a tensor another name; one * in both stands for anything", "OLD=NEW"
    )
    set_dtype: Sequence[str] = _edit(
        "the dtype of a kind of tensors or of names (globs), in the place of `dtype`: router=fp32",
        "WHAT=DTYPE",
    )
    edits: Sequence[Sequence[str]] = option(
        "edits of different kinds that take turns, as pairs of the name of an option and its value",
        default=(),
        hidden=True,
    )
    recipe: OptionalPlace = option(
        "a TOML file of edits, which come in its order and before those of the call, in theirs "
        "(docs/surgery.md)",
        metavar="FILE",
    )
    to: str | None = option(
        "the layout to write", unset="that of `source`", metavar="LAYOUT", completes="layout"
    )
    from_: str | None = layout_of("`source`")
    allow_unmapped: bool = flag("leave out tensors that the mapping doesn't know")
    allow_unloadable: bool = flag(
        "write what config.json or the mapping can't say, such as axes of other lengths"
    )
    allow_no_config: bool = flag(NO_CONFIG)
    src_strategy_dir: OptionalPlace = source_strategy("source")
    src_parallel_config: OptionalPlace = source_config("source")
    dst_strategy_dir: OptionalPlace = TARGET_STRATEGY
    dst_parallel_config: OptionalPlace = TARGET_CONFIG


class Average(Carded, MindSporeOutput, Released, Shards, Overflow, Configured, Mapped, Parted):
    """One checkpoint of several."""

    out: Place = required(OUT, kw_only=False)
    sources: Sequence[str | Path] = option(
        "the checkpoints, of any formats, layouts and splits, but of one model; with `last` the "
        "directory of one run",
        default=(),
        metavar="IN",
        kw_only=False,
    )
    weights: str | Sequence[float] | None = option(
        "how much each counts, in their order: 0.5,0.3,0.2",
        unset="all alike, together 1; with `base` each 1",
        metavar="X,X,…",
    )
    last: int | None = option("average the last so many checkpoints of one run", metavar="N")
    schedule: str | None = option(
        "how much the last checkpoints count, the oldest first",
        choices="uniform|ema:DECAY|minus-sqrt",
    )
    method: Literal["linear", "slerp", "dare"] | None = option(
        "how they are averaged: by a weighted sum, along the arc between two, or with part of each "
        "difference from the base dropped",
        unset="linear",
    )
    base: OptionalPlace = option(
        "the checkpoint whose differences from the others are averaged and added to it",
        metavar="BASE",
    )
    scale: float | None = option(
        "what the sum of the differences from `base` is multiplied by", unset="1", metavar="X"
    )
    density: float | None = option(
        "of dare: which part of each difference is kept", unset="0.5", metavar="X"
    )
    seed: int | None = option("of dare: by which the kept elements are chosen", unset="0")
    recipe: OptionalPlace = option(
        "a TOML file that says all that, also weights by kind and by layer (docs/surgery.md)",
        metavar="FILE",
    )
    to: str | None = option(
        "the layout to write", unset="the first one's", metavar="LAYOUT", completes="layout"
    )
    dtype: str | None = dtype_of("the dtype of floating-point weights")
    src_strategy_dir: OptionalPlace = option(
        "the strategy of those that are rank directories", metavar="DIR_OR_FILE"
    )
    src_parallel_config: OptionalPlace = option(
        "the parallel configuration of those that are rank directories", metavar="FILE"
    )
    dst_strategy_dir: OptionalPlace = TARGET_STRATEGY
    dst_parallel_config: OptionalPlace = TARGET_CONFIG
    allow_no_config: bool = flag(NO_CONFIG)


class Stats(_Looked, Workers):
    """What the numbers of a checkpoint are like."""

    source: Place = required(ANY, metavar="IN", kw_only=False)
    layout: str | None = option(
        "bring the model into this layout first", metavar="LAYOUT", completes="layout"
    )
