"""How commands and groups behave: parameters from records of options, examples at the end of a help
text, and suggestions that do no harm."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.formatting import wrap_text

from ckptforge.cli.parameters import hidden, parameters
from ckptforge.cli.shown import Shown
from ckptforge.verbs.options.record import Options, options_of
from ckptforge.wording import nearest

if TYPE_CHECKING:
    from typing_extensions import Self

R = TypeVar("R", bound=Options)
CONTEXT: dict[str, Any] = {
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
}
_OTHERWISE = {"plan": " `--dry-run` of the command that writes prints its plan."}
_SENTENCE = 400  # characters that the first one of a help text has at most
_ORDER = "ckptforge.order"  # of the context: the name of the option at each place of the line
# what nobody gets by a typing error
_UNASKED = ("--overwrite", "--allow-", "--no-", "--weights-only", "--trim-", "--drop")


class _Forgiving(click.Command):
    """Suggests the nearest for an option that isn't there."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does."""
        given = list(args)
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise _without_harm(error, self, ctx) from None
        ctx.meta[_ORDER] = [one.name for one in self.make_parser(ctx).parse_args(given)[2]]
        return rest


class Command(_Forgiving):
    """A command that is declared: `run` is called with how results are shown and with each of its
    records, made of what was given, and returns the exit code. `others` are options that no help
    lists, which a record holds together under that name."""

    def __init__(
        self,
        name: str,
        run: Callable[..., int | None],
        *records: type[Options],
        others: Sequence[str] = (),
    ) -> None:
        super().__init__(name, callback=self._called)
        self.run, self.records, self.others = run, records, others
        self.examples = ""

    def described(self, text: str) -> Self:
        """The command with its help, and what stands below "Examples:" as such."""
        self.help, _, self.examples = inspect.cleandoc(text).partition("\n\nExamples:\n")
        return self

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The parameters, made when they are first needed."""
        if not self.params:  # made when they are needed: the help of the group needs none
            records = (*self.records, Shown)  # of an option that several have, the first's
            named = {one.name: one for record in reversed(records) for one in parameters(record)}
            order = dict.fromkeys(one.name for record in records for one in parameters(record))
            made = [named[name] for name in order]
            for one in made:
                if one.name in ("quiet", "verbose"):
                    one.callback = _exclusive
            self.params = made + hidden(self.others)
        return super().get_params(ctx)

    def _called(self, **values: Any) -> None:
        given = {name: value for name, value in values.items() if value is not None}
        for record in self.records:
            _gather(given, record)
        others = {name: given.pop(name) for name in self.others if name in given}
        if self.others:
            given["others"] = others
        shown = _made(Shown, given)
        options = [_made(record, given) for record in self.records]
        if shown.verbose:
            from ckptforge.cli.verbose import log_to_stderr

            log_to_stderr()
        if code := self.run(shown, *options):
            click.get_current_context().exit(code)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the examples below the options."""
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.strip().splitlines():
                    formatter.write(f"{_continued(line.strip(), formatter.width)}\n")
        super().format_epilog(ctx, formatter)


def _continued(line: str, width: int) -> str:
    """A command for a shell in lines of this width, indented, continued before options."""
    first, *others = re.split(r" (?=--)", f"  {line}")
    lines = [first]
    for one in others:
        if len(lines[-1]) + len(one) + 3 > width:  # a space, and what continues a line
            lines[-1] += " \\"
            lines.append(f"      {one}")
        else:
            lines[-1] += f" {one}"
    return "\n".join(lines)


class Group(_Forgiving, click.Group):
    """A group of commands that suggests the nearest for one that isn't there."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes what each command does in a whole sentence."""
        rows = [
            (name, one.get_short_help_str(limit=_SENTENCE))
            for name in self.list_commands(ctx)
            if (one := self.get_command(ctx, name)) is not None
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of a name, or an error with the nearest."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            name = str(args[0])
            if self.get_command(ctx, name) is not None or name.startswith("-"):
                raise
            raise click.UsageError(
                f"No such command {name!r}."
                f"{_OTHERWISE.get(name, nearest(name, self.list_commands(ctx)))}",
                ctx,
            ) from error


class Root(Group):
    """The group of all commands, whose help also lists the topics."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the topics above the rest."""
        from ckptforge.cli.topics import topics

        with formatter.section("Topics (ckptforge help TOPIC)"):
            formatter.write(f"{wrap_text(', '.join(topics()), formatter.width, '  ', '  ')}\n")
        super().format_epilog(ctx, formatter)


def _gather(given: dict[str, Any], record: type[Options]) -> None:
    """Puts the values of options that go into another into that, in the order of the words."""
    values = {
        name: [True] if given[name] is True else list(given[name] or ())
        for name, one in options_of(record).items()
        if one.into and name in given
    }
    for name in click.get_current_context().meta[_ORDER]:
        if values.get(name):
            value = values[name].pop(0)
            given.pop(name, None)
            into = given.setdefault(options_of(record)[name].into, [])
            into.append((name, "" if value is True else value))


def _made(record: type[R], given: Mapping[str, Any]) -> R:
    return record(**{name: given[name] for name in options_of(record) if name in given})


def _exclusive(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    if value and ctx.meta.setdefault("ckptforge.saying", param.name) != param.name:
        raise click.UsageError("--quiet and --verbose can't be used together.", ctx)
    return value


def _without_harm(
    error: click.NoSuchOption, command: click.Command, ctx: click.Context
) -> click.NoSuchOption:
    """The error with the nearest option that neither overwrites, allows nor drops anything."""
    options = [
        name
        for param in command.get_params(ctx)
        if isinstance(param, click.Option) and not param.hidden
        for name in param.opts
    ]
    known = [name for name in options if name.startswith("--") and not name.startswith(_UNASKED)]
    name = error.option_name
    return click.NoSuchOption(name, f"No such option {name!r}.{nearest(name, known)}", ctx=ctx)
