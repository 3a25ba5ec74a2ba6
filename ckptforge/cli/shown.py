"""How commands show what a verb gives back: the options for that, and where the result goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from ckptforge.cli.console import print_json, print_result
from ckptforge.cli.page import Page
from ckptforge.verbs.options.option import flag
from ckptforge.verbs.options.record import Options


class Shown(Options):
    """How a result is shown."""

    json: bool = flag("print the result as one JSON object (docs/json.md)")
    quiet: bool = flag("print nothing but errors (and the JSON object)")
    verbose: bool = flag("say on stderr what was found, and why, and how long it took")

    def result(
        self,
        content: Callable[[], Mapping[str, Any]],
        text: Callable[[], str],
        page: Page | None = None,
    ) -> None:
        """Shows what was done, also as a page where one is asked for."""
        written = page.write(content) if page is not None else ""
        if self.json:
            print_json(content())
        elif not self.quiet:
            print_result(text())
            _say(written)

    def check(
        self,
        content: Mapping[str, Any],
        text: str,
        passed: bool,
        words: tuple[str, str],
        kind: str,
        failure: str | None = None,
        page: Page | None = None,
    ) -> int:
        """Shows what a check found, and gives back the exit code. `words` say in JSON how it ended,
        `kind` and `failure` (by default the text's last line) what failed."""
        written = page.write(lambda: content, text) if page is not None else ""
        if self.json:
            error = None if passed else failure or text.splitlines()[-1]
            print_json(content, words[0] if passed else words[1], error, kind)
        elif not self.quiet:
            print_result(text, failed=not passed)
            _say(written)
        return 0 if passed else 1


def _say(written: str) -> None:
    """Says beside the result, which alone is on stdout, what was written about it."""
    if written:
        click.echo(written, err=True)
