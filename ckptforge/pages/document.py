"""The frame of every page: its head, its style, its script, and the order of its sections."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib import resources

from ckptforge.pages.markup import Child, Markup, breakable, joined, tag
from ckptforge.version import __version__

START = b"<!doctype html>\n"  # of the file, by which a page is known


def document(title: str, subject: str, sections: Sequence[Markup], verdict: Markup) -> str:
    """A whole page. Its policy forbids whatever isn't in it: a browser loads nothing and runs no
    script but the page's own, whatever the names of tensors are."""
    style, script = _shipped("style.css"), _shipped("page.js")
    digest = b64encode(sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title}: {subject}"),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the result", class_="skip", href="#main"),
        tag("header", tag("h1", title), tag("p", breakable(subject))),
        tag("main", verdict, *sections, id="main"),
        tag("footer", tag("p", f"made by ckptforge {__version__}")),
        tag("div", id="tip", role="status", hidden=True),
        tag("script", Markup(script)),
    )
    return f"{START.decode()}{tag('html', head, body, lang='en')}\n"


def section(title: str, *content: Child | None) -> Markup | None:
    """A section under a heading; None where there is nothing in it."""
    inner = joined(*content)
    if not inner:
        return None
    name = f"s-{title.lower().replace(' ', '-').replace(',', '')}"
    return tag("section", tag("h2", title, id=name), inner, aria_labelledby=name)


def _shipped(name: str) -> str:
    return (resources.files("ckptforge.pages") / name).read_text(encoding="utf-8")
