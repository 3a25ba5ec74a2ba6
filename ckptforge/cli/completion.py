"""What the shell completes: names of layouts, models, dtypes and topics."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from ckptforge.errors import CkptforgeError
from ckptforge.verbs.options.option import Names, Option
from ckptforge.verbs.options.record import options_of

if TYPE_CHECKING:
    from ckptforge.tables.table import Table

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
_MAX_CONFIG = 1 << 20


def completing(option: Option) -> Complete | None:
    """What completes the value of an option, also its default where that is a word, and files
    where it is an argument."""
    if not option.completes:
        return None
    default = [CompletionItem(option.default)] if isinstance(option.default, str) else []

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        words = [*default, *_words(option.completes, ctx)]
        found = [word for word in words if word.value.startswith(incomplete)]
        # first, as bash then forgets the words before it
        return found if option.kw_only else [CompletionItem(incomplete, type="file"), *found]

    return complete


def helped(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What help can be asked for: commands, those of a group that was named, and topics."""
    from ckptforge.cli.topics import topics

    names = list(ctx.params.get("command") or ())
    group: click.Command | None = ctx.find_root().command
    for name in names:
        group = group.commands.get(name) if isinstance(group, click.Group) else None
    found = [
        CompletionItem(name, help=one.get_short_help_str())
        for name, one in (group.commands if isinstance(group, click.Group) else {}).items()
    ]
    found += [CompletionItem(name) for name in (topics() if not names else [])]
    return [item for item in found if item.value.startswith(incomplete)]


def _words(kind: Names, ctx: click.Context) -> Iterator[CompletionItem]:
    """The tables, the dtypes that a cast can have, the kinds of codes, or the layouts of a family
    or of both: those of the model that the command line or the input's config.json names, else of
    every table."""
    from ckptforge.dtypes import BY_NAME
    from ckptforge.tables.shipped import shipped_tables
    from ckptforge.verbs.options.dtypes import SHORT_NAMES

    if kind == "model":
        for table in shipped_tables():
            yield CompletionItem(table.name, help=", ".join(table.model_types))
    elif kind == "dtype":
        for short, name in SHORT_NAMES.items():
            yield CompletionItem(short, help=BY_NAME[name].name)
    elif kind == "code":
        from ckptforge.steps.encoded import CODES

        yield from map(CompletionItem, CODES)
    else:
        tables: dict[str, list[str]] = {}
        for table in _tables(ctx):
            for layout in table.layouts.values():
                if kind in ("layout", layout.family):
                    tables.setdefault(layout.name, []).append(table.name)
        for name, of in tables.items():
            yield CompletionItem(name, help=", ".join(of))


def _tables(ctx: click.Context) -> tuple[Table, ...]:
    from ckptforge.tables.shipped import candidate_tables

    model, table = _named(ctx), ctx.params.get("mapping")
    if model and model.endswith(".toml"):
        table = Path(model)
    with suppress(CkptforgeError):
        kind = next(filter(None, map(_model_type, ctx.args)), None)
        return candidate_tables(table, model, kind)
    return ()


def _named(ctx: click.Context) -> str | None:
    """The table that the command line names, by an option or an argument."""
    words = list(ctx.args)  # arguments, where the option that is completed stands before its value
    for record in getattr(ctx.command, "records", ()):
        for name, one in options_of(record).items():
            given = ctx.params.get(name)
            if given is None and not one.kw_only and words:
                given = words.pop(0)
            if given is not None and one.completes == "model":
                return str(given)
    return None


def _model_type(word: str) -> object:
    """The model_type of the config.json in a directory, if a word names one."""
    with (
        suppress(OSError, ValueError, AttributeError),
        open(os.path.join(word, "config.json"), encoding="utf-8") as file,
    ):
        return json.loads(file.read(_MAX_CONFIG)).get("model_type")
    return None
