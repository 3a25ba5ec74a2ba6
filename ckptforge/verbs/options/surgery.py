"""What the verbs of surgery are called with."""

from __future__ import annotations

from ckptforge.verbs.options.option import OptionalPlace, Place, flag, option, required
from ckptforge.verbs.options.shared import (
    Configured,
    Mapped,
    Overflow,
    Running,
    Stepped,
    Workers,
    source_config,
    source_strategy,
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
    dtype: str | None = option(
        "cast its numbers, and count what that changes",
        default="keep",
        choices="keep|fp16|bf16|fp32|fp64",
        completes="dtype",
    )


class Stats(_Looked, Workers):
    """What the numbers of a checkpoint are like."""

    source: Place = required(ANY, metavar="IN", kw_only=False)
    layout: str | None = option(
        "bring the model into this layout first", metavar="LAYOUT", completes="layout"
    )
    html: OptionalPlace = option("also write a page with all tables", metavar="FILE")
    overwrite: bool = flag("replace an existing page")
