"""A checkpoint that one tensor or some figures are taken of."""

from __future__ import annotations

from ckptforge.verbs import opened
from ckptforge.verbs.options.surgery import Extract, Stats


def opened_as(options: Extract | Stats) -> opened.OpenedModel:
    """The checkpoint that is named, in the layout that is asked for."""
    found = opened.open(
        options.source,
        strategy_dir=options.strategy_dir,
        parallel_config=options.parallel_config,
        config=options.config,
        step=options.step,
        model=options.model,
        mapping=options.mapping,
    )
    return found if options.layout is None else found.as_layout(options.layout)
