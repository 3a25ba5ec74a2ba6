"""What the shell completes: names of layouts, models and dtypes. Reads the mapping tables alone,
and config.json."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from ckptforge.errors import CkptforgeError
from ckptforge.verbs.options.option import Option

if TYPE_CHECKING:
    from ckptforge.tables.table import Table

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
_MAX_CONFIG = 1 << 20


def completing(option: Option) -> Complete | None:
    """What completes the value of an option; its default, where that is a word, is completed
    too."""
    words = [option.default] if isinstance(option.default, str) else []
    if option.completes == "model":
        return models
    if option.completes == "dtype":
        return dtypes(*words)
    if option.completes == "layout":
        return layouts(None, *words)
    return layouts(option.completes, *words) if option.completes else None


def layouts(family: str | None = None, *more: str) -> Complete:
    """Completes the layouts of a family, or all: of the model that --model, --mapping or the
    input's config.json names, else of every table; and `more` words."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        names: dict[str, list[str]] = {}
        for table in _tables(ctx):
            for layout in table.layouts.values():
                if family in (None, layout.family):
                    names.setdefault(layout.name, []).append(table.name)
        found = [CompletionItem(word) for word in more] + [
            CompletionItem(name, help=", ".join(of)) for name, of in names.items()
        ]
        return [item for item in found if item.value.startswith(incomplete)]

    return complete


def models(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the names of tables."""
    from ckptforge.tables.shipped import shipped_tables

    tables = [table for table in shipped_tables() if table.name.startswith(incomplete)]
    return [CompletionItem(table.name, help=", ".join(table.model_types)) for table in tables]


def dtypes(*words: str) -> Complete:
    """Completes the short names of dtypes that a cast can have, with `words` before them."""

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from ckptforge.dtypes import BY_NAME, SHORT_NAMES

        named = [
            CompletionItem(short, help=BY_NAME[name].name) for short, name in SHORT_NAMES.items()
        ]
        return [
            item
            for item in [*map(CompletionItem, words), *named]
            if item.value.startswith(incomplete)
        ]

    return complete


def _tables(ctx: click.Context) -> tuple[Table, ...]:
    from ckptforge.tables.shipped import candidate_tables

    named = ctx.params.get("model"), next(filter(None, map(_model_type, ctx.args)), None)
    with suppress(CkptforgeError):
        return candidate_tables(ctx.params.get("mapping"), *named)
    return ()


def _model_type(word: str) -> object:
    """The model_type of the config.json in a directory, if that is what a word of the command line
    names."""
    with (
        suppress(OSError, ValueError, AttributeError),
        open(os.path.join(word, "config.json"), encoding="utf-8") as file,
    ):
        return json.loads(file.read(_MAX_CONFIG)).get("model_type")
    return None
