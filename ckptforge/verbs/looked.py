"""A checkpoint that one tensor or some figures are taken of."""

from __future__ import annotations

from ckptforge.verbs.opened import OpenedModel, opened_by
from ckptforge.verbs.options.surgery import Extract, Stats


def opened_as(options: Extract | Stats) -> OpenedModel:
    """The checkpoint that is named, in the layout that is asked for."""
    cut = {name: name for name in ("strategy_dir", "parallel_config")}
    found = opened_by(options.source, options, cut)
    return found if options.layout is None else found.as_layout(options.layout)
