"""What is asked of mapping tables."""

from __future__ import annotations

from ckptforge.verbs.options.option import OptionalPlace, Place, option
from ckptforge.verbs.options.record import Options


class MappingShow(Options):
    """One layout of a table."""

    name: Place = option("a shipped table, or a .toml file", kw_only=False)
    layout: str | None = option(
        "the layout to show",
        default=None,
        unset="MindSpore's first",
        metavar="LAYOUT",
        completes="layout",
    )


class MappingCheck(Options):
    """Whether a table keeps all rules."""

    file: Place = option("a .toml file, or the name of a shipped table", kw_only=False)
    config: OptionalPlace = option(
        "a config.json, or its directory: count tensors and parameters",
        default=None,
        metavar="JSON",
    )
