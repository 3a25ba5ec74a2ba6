"""The option that has a result written as a page, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ckptforge.errors import OutputError
from ckptforge.spelling import flag as spelled
from ckptforge.verbs.options.option import OptionalPlace, flag, option
from ckptforge.verbs.options.record import Options

_MEANING = "also write the result as a page, with pictures, that a browser shows by itself"


class Page(Options):
    """A page on a result."""

    html: OptionalPlace = option(_MEANING, metavar="FILE")
    overwrite: bool = flag("replace an existing page")

    def refuse(self) -> None:
        """Raises `OutputError` for a page that is there already, unless it may be replaced, and
        `UsageError` for an address."""
        if self.html is None:
            return
        from ckptforge.foreign.paths import exists
        from ckptforge.publish.output_name import refuse_address

        refuse_address(self.html)
        if exists(self.html) and not self.overwrite:
            again = spelled("overwrite")
            raise OutputError(f"{self.html}: exists already; give {again} to replace it.")

    def write(self, found: Callable[[], Mapping[str, Any]], text: str = "") -> None:
        """Writes the page, where one is asked for; `text` ends with the verdict of a check. Raises
        `OutputError`."""
        if self.html is not None:
            from ckptforge.pages import html_page
            from ckptforge.publish.single_file import write_file

            write_file(self.html, html_page(found(), text.rpartition("\n")[2]).encode())


class Report(Page):
    """The page of `verify`, whose option had another name."""

    html: OptionalPlace = option(_MEANING, metavar="FILE", aliases=("--report",))
