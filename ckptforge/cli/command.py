"""How commands and groups behave: examples at the end of a help text, and suggestions that do no
harm."""

from __future__ import annotations

from typing import Any

import click

from ckptforge.errors import nearest

# what nobody gets by a typing error
_UNASKED = ("--overwrite", "--allow-", "--no-", "--weights-only", "--trim-", "--drop")


class Command(click.Command):
    """A command whose help ends with examples, printed as they are."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.strip().splitlines():
                    formatter.write(f"  {line.strip()}\n")
        super().format_epilog(ctx, formatter)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise _without_harm(error, self, ctx) from None


class Group(click.Group):
    """A group of commands that suggests the nearest for one that isn't there."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            name = str(args[0])
            if self.get_command(ctx, name) is not None or name.startswith("-"):
                raise
            raise click.UsageError(
                f"No such command {name!r}.{nearest(name, self.list_commands(ctx))}", ctx
            ) from error

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise _without_harm(error, self, ctx) from None


def _without_harm(
    error: click.NoSuchOption, command: click.Command, ctx: click.Context
) -> click.NoSuchOption:
    """The error with the nearest option, but never one that overwrites, allows or drops
    something."""
    options = [
        name
        for param in command.get_params(ctx)
        if isinstance(param, click.Option) and not param.hidden
        for name in param.opts
    ]
    known = [name for name in options if name.startswith("--") and not name.startswith(_UNASKED)]
    name = error.option_name
    return click.NoSuchOption(name, f"No such option {name!r}.{nearest(name, known)}", ctx=ctx)
