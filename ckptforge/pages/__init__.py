"""Results as HTML pages that need nothing from elsewhere: `html_page` makes one of what `--json`
prints.

Deleting this room takes the option `--html` away, and nothing else.
"""

from ckptforge.pages.results import html_page

__all__ = ["html_page"]
