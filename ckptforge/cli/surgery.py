"""The commands of surgery, and looking closer: `extract` and `stats`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptforge.cli import actions
from ckptforge.cli import progress as progressing
from ckptforge.cli.command import Command
from ckptforge.cli.page import Page
from ckptforge.cli.shown import Shown
from ckptforge.cli.table import table
from ckptforge.errors import printable
from ckptforge.verbs.options import Average, Edit, Extract, Stats
from ckptforge.wording import counted

if TYPE_CHECKING:
    from ckptforge.verbs.stats import Figures, Statistics


def stats(shown: Shown, options: Stats, page: Page) -> None:
    """Figures by kind; the JSON and the page have every tensor."""
    page.refuse(options)
    with progressing.shown(shown.quiet, "reading") as progress:
        found = actions.call(options, progress=progress)
    shown.result(found.to_json, lambda: _stats_text(found), page)


def _stats_text(found: Statistics) -> str:
    about = f"{found.model or 'any model'}, layout {found.layout or 'not recognised'}"
    rows = [["kind", "tensors", "numbers", "min", "max", "mean", "std", "zeros", "NaN", "inf"]]
    for kind, one in found.kinds.items():
        rows.append([kind, str(one.tensors), f"{one.count:,}", *_cells(one)])
    lines = [f"{printable(str(found.path))}: {about}", "", table(rows, right=range(1, 10))]
    for name, tensor in found.tensors.items():
        if bad := tensor.figures.nan + tensor.figures.infinite:
            lines.append(f"not finite: {counted(bad, 'number')} of {printable(name)}")
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _cells(figures: Figures) -> list[str]:
    numbers = (figures.min, figures.max, figures.mean, figures.std)
    counts = (figures.zeros, figures.nan, figures.infinite)
    return [*(f"{one:.4g}" for one in numbers), *(f"{one:,}" for one in counts)]


COMMANDS = (
    Command("edit", actions.write, Edit, Page).described("""
        Take, merge and pad axes; drop, keep, rename, tie and cast tensors: in one pass.

        An axis is cut wherever it occurs, in any layout and split, and config.json follows. Edits
        come in the order of a recipe, and then as they stand here. What config.json can't say is
        refused.

        Examples:
            ckptforge edit hf_dir pruned --take e=@kept.json
            ckptforge edit hf_dir small --take l=0-2,58-60 --set-dtype router=fp32
            ckptforge edit hf_dir padded.ckpt --pad V=multiple:1024 --fill mean --to mcore
            ckptforge edit dense_hf_dir moe --expand 'TABLE experts=4 active=2'
        """),
    Command("average", actions.write, Average, Page).described("""
        Average checkpoints of one model, of any formats, layouts and splits, into one.

        Weighted sums in float64, rounded once; task arithmetic with --base and --scale; the arc
        between two (slerp); DARE; the last checkpoints of a run by a schedule.

        Examples:
            ckptforge average out a b c --weights 0.5,0.3,0.2
            ckptforge average out output/checkpoint --last 5 --schedule minus-sqrt --to hub
            ckptforge average out math code --base base --scale 0.7
            ckptforge average out a b --method slerp --weights 0.6,0.4
        """),
    Command("extract", actions.write, Extract, Page).described("""
        Write one tensor of a checkpoint, or a part of it, as numpy's file.

        IN is any checkpoint, also in ranks; NAME is the name of a tensor in it, or in the layout
        that is asked for.

        Examples:
            ckptforge extract hf_dir lm_head.weight head.npy
            ckptforge extract model.ckpt lm_head.weight rows.npy --index 0:4,: --dtype fp32
        """),
    Command("stats", stats, Stats, Page).described("""
        Minimum, maximum, mean, deviation, zeros, NaN and infinities of every kind of tensor.

        With --json or --html of every tensor. Each is read once; sums are made in float64.

        Examples:
            ckptforge stats hf_dir
            ckptforge stats output/checkpoint --strategy-dir output/strategy --html stats.html
        """),
)
