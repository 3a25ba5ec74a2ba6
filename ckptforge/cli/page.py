"""The option that has a result written as a page, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from ckptforge.errors import OutputError, UsageError, printable
from ckptforge.spelling import flag as spelled
from ckptforge.spelling import option as named
from ckptforge.verbs.options.option import OptionalPlace, flag, option
from ckptforge.verbs.options.record import Options, options_of
from ckptforge.wording import size

_MEANING = "also write the result as a page, with pictures, that a browser shows by itself"


class Page(Options):
    """A page on a result."""

    html: OptionalPlace = option(_MEANING, metavar="FILE")
    overwrite: bool = flag("replace an existing page")

    def refuse(self, others: Options) -> None:
        """Raises, before anything is done, `OutputError` for a page that can't be written there or
        that would replace something, and `UsageError` for an address, for a path that the other
        options name, too, and for no page that is to replace one."""
        if self.html is None:
            if self.overwrite and "overwrite" not in options_of(type(others)):
                raise UsageError(
                    f"{spelled('overwrite')} means nothing without {named('html')}, the page that "
                    "it replaces: give both, or neither."
                )
            return
        from ckptforge.foreign.paths import exists, is_directory
        from ckptforge.publish.output_name import refuse_address

        refuse_address(self.html)
        if any(getattr(others, name) == self.html for name in options_of(type(others))):
            raise UsageError(f"{self.html}: can't be the page and something else; name two files.")
        if not is_directory(self.html.parent):
            raise OutputError(f"{self.html}: the directory {self.html.parent} doesn't exist.")
        if exists(self.html) and not self.overwrite:
            again = spelled("overwrite")
            raise OutputError(f"{self.html}: exists already; give {again} to replace it.")
        self._keep_others()

    def write(self, found: Callable[[], Mapping[str, Any]], text: str = "") -> str:
        """Writes the page, where one is asked for, and says so; `text` ends with the verdict of a
        check. Raises `OutputError`."""
        if self.html is None:
            return ""
        from ckptforge.pages import html_page
        from ckptforge.publish.single_file import write_file

        content = html_page(found(), text.rpartition("\n")[2]).encode()
        self._keep_others()
        write_file(self.html, content)
        return f"wrote {printable(str(self.html))}: a page of {size(len(content))}"

    def _keep_others(self) -> None:
        """Raises `OutputError` where FILE is something else than a page: none replaces a model
        whose name stands there by mistake."""
        from ckptforge.foreign.paths import exists, is_file
        from ckptforge.pages.document import START
        from ckptforge.storage.files import open_file

        assert self.html is not None
        if not exists(self.html):
            return
        if is_file(self.html):
            with closing(open_file(self.html)) as reader:
                start = bytearray(len(START))
                count = reader.read_into(0, memoryview(start))
            if count == 0 or start == START:
                return
        raise OutputError(f"{self.html}: isn't a page, and is kept; name another file.")


class Report(Page):
    """The page of `verify`, whose option had another name."""

    html: OptionalPlace = option(_MEANING, metavar="FILE", aliases=("--report",))
