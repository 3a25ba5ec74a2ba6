"""What the commands do. What is heavy is imported when a command runs."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import click

import ckptforge
from ckptforge.cli import findings, text
from ckptforge.cli import progress as progressing
from ckptforge.cli.console import print_json, this_command
from ckptforge.cli.page import Page, Report
from ckptforge.cli.shown import Shown
from ckptforge.spelling import option as spelled
from ckptforge.verbs.options import (
    Clean,
    Compare,
    Finish,
    Inspect,
    MappingCheck,
    MappingShow,
    Running,
    Verify,
)
from ckptforge.verbs.options.option import OptionalPlace, flag, option
from ckptforge.verbs.options.record import Options, options_of, verb_of
from ckptforge.verbs.public import of_record


class Listed(Options):
    """What `inspect` lists."""

    tensors: bool = flag("list every tensor, file and part")


class CompareOrCheck(Compare):
    """`compare` takes one output, too, and then checks it."""

    b = option("any other", kw_only=False)


class Demo(Options):
    """Where the demo is made."""

    directory: OptionalPlace = option("where the files are kept", metavar="DIR", kw_only=False)
    overwrite: bool = flag("replace an earlier demo in `directory`", needs=("directory",))


def call(options: Options, **more: Any) -> Any:
    """What the verb that a record is for gives back."""
    return of_record(getattr(ckptforge, verb_of(type(options))))(options.replace(**more))


def write(shown: Shown, options: Running | Finish, page: Page | None = None) -> None:
    """A verb that writes."""
    if page is not None:
        page.refuse(options)
    with progressing.shown(shown.quiet, "copying") as progress:
        result = call(options, progress=progress, command=this_command())
    shown.result(result.to_json, lambda: text.result_text(result), page)


def inspect(shown: Shown, options: Inspect, listed: Listed, page: Page) -> None:
    """What is in a checkpoint."""
    page.refuse(options)
    found = call(options)
    shown.result(found.to_json, lambda: findings.inspection_text(found, listed.tensors), page)


def compare(shown: Shown, options: CompareOrCheck, page: Page) -> int:
    """Two checkpoints, or an output and its manifest."""
    found: Any
    page.refuse(options)
    with progressing.shown(shown.quiet, "comparing") as progress:
        if options.b is None:
            found = ckptforge.check(**_for_check(options), progress=progress)
            outcome = findings.check_text(found)
        else:
            found = of_record(ckptforge.compare)(options.replace(progress=progress))
            outcome = findings.comparison_text(found)
    words = ("same", "different")
    return shown.check(found.to_json(), outcome, found.equal, words, "Different", page=page)


def _for_check(options: CompareOrCheck) -> dict[str, Any]:
    """What comparing with a manifest is called with. Raises `UsageError` for more."""
    taken = {name: getattr(options, name) for name in ("workers", "memory", "endpoint")}
    for name, one in options_of(Compare).items():
        if one.kw_only and name not in taken and getattr(options, name) != one.default:
            raise click.UsageError(f"{spelled(name)} needs a second checkpoint, B.")
    return {"path": options.a, **taken}


def verify(shown: Shown, options: Verify, page: Report) -> int:
    """The forward check, and a page on it."""
    from ckptforge.forward.device import parse_device

    parse_device(options.device)
    page.refuse(options)
    aloud = not shown.quiet and sys.stderr.isatty() and not shown.verbose
    found = call(options, say=(lambda line: click.echo(line, err=True)) if aloud else None)
    outcome = findings.verification_text(found)
    words = ("passed", "failed")
    return shown.check(found.to_json(), outcome, found.passed, words, "VerifyFailed", page=page)


def clean(shown: Shown, options: Clean) -> int:
    """What interrupted runs left."""
    found = call(options)
    return shown.check(
        {"verb": "clean", **found.to_json()},
        text.cleaned_text(found),
        found.ok,
        ("done", "failed"),
        "OutputError",
        "something that isn't in use couldn't be removed.",
    )


def mapping_list(shown: Shown) -> None:
    """The shipped tables."""
    from ckptforge.verbs.tables import list_tables

    found = list_tables()
    shown.result(
        lambda: {"verb": "mapping list", "tables": [asdict(one) for one in found]},
        lambda: text.tables_text(found),
    )


def mapping_show(shown: Shown, options: MappingShow) -> None:
    """One layout of a table."""
    from ckptforge.verbs.tables import describe

    found = of_record(describe)(options)
    shown.result(
        lambda: {"verb": "mapping show", **asdict(found)}, lambda: text.description_text(found)
    )


def mapping_check(shown: Shown, options: MappingCheck) -> None:
    """Whether a table is right."""
    from ckptforge.verbs.tables import check_table

    found = of_record(check_table)(options)
    shown.result(
        lambda: {"verb": "mapping check", **asdict(found)}, lambda: text.checked_text(found)
    )


def demo(shown: Shown, options: Demo) -> None:
    """The demo."""
    from ckptforge.cli.demo import run_demo

    say = (lambda _: None) if shown.json or shown.quiet else click.echo
    found = run_demo(options.directory, options.overwrite, say)
    if shown.json:
        print_json({"verb": "demo", **found})
