"""`https://`: files of a web server, by ranges.

A directory is what the server lists: a page whose links lead to what lies directly below it, as
Apache, nginx and Python's server make one. `http://` is for servers on this machine.
"""

from __future__ import annotations

import errno
import re
from email.utils import parsedate_to_datetime
from html import unescape
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

from ckptforge.remote.http import CLIENT, Answer
from ckptforge.remote.objects import Facts, changed
from ckptforge.remote.store import RemoteStore
from ckptforge.storage.store import Store

_LINK = re.compile(r"""<a\s[^>]*?href\s*=\s*["']([^"'?#]+)["']""", re.IGNORECASE)
_MAX_PAGE = 16 * 1024 * 1024
_SAFE = "/:%@!$&'()*+,;=~-._"


def web_store(scheme: str) -> Store:
    """The store of `https://` and of `http://`."""
    return RemoteStore(Web())


def url_of(path: Path) -> str:
    """The address of a path, with what a URL can't hold escaped."""
    return quote(str(path), safe=_SAFE)


class Web:
    """Files of web servers."""

    def facts(self, path: Path) -> Facts | None:
        """By a HEAD request; None for an address that leads to a directory."""
        try:
            with CLIENT.ask("HEAD", url_of(path)) as answer:
                answer.refuse()
                if urlsplit(answer.url).path.endswith("/") or not urlsplit(answer.url).path:
                    return None  # a directory
                return facts_in(answer)
        except FileNotFoundError:
            return None

    def names(self, directory: Path) -> list[str]:
        """By the links on the page that the server makes of a directory."""
        try:
            with CLIENT.ask("GET", url_of(directory).rstrip("/") + "/") as answer:
                answer.refuse()
                if not answer.header("Content-Type").startswith("text/html"):
                    return []
                page = answer.read(_MAX_PAGE).decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        below = (urljoin(answer.url, unescape(link)) for link in _LINK.findall(page))
        names = (
            unquote(link[len(answer.url) :].rstrip("/")).replace("%", "%25")
            for link in below
            if link.startswith(answer.url)
        )
        return sorted({name for name in names if name and "/" not in name})

    def fetch(self, path: Path, facts: Facts, start: int, into: memoryview) -> int:
        """By one request for a range; see `fetch`."""
        return fetch(url_of(path), path, facts, start, into, {})


def facts_in(answer: Answer) -> Facts:
    """What the headers of an answer say of a file. Raises `OSError` where they don't say its
    size."""
    length = answer.header("Content-Length")
    if not length.isdigit():
        raise OSError(errno.EOPNOTSUPP, "its server doesn't say how large it is: download it first")
    return Facts(size=int(length), version=version_in(answer), modified=_modified(answer))


def version_in(answer: Answer) -> str:
    """What tells a file's contents from others: the etag, or else the time of change."""
    return answer.header("ETag") or answer.header("Last-Modified")


def _modified(answer: Answer) -> int:
    try:
        return int(parsedate_to_datetime(answer.header("Last-Modified")).timestamp())
    except (TypeError, ValueError):
        return 0


def fetch(
    url: str,
    path: Path,
    facts: Facts,
    start: int,
    into: memoryview,
    headers: dict[str, str],
    version: bool = True,
) -> int:
    """Puts one range of a file into a buffer; returns how many bytes came. Raises `Passing` and
    `OSError`: also where the size, or with `version` the etag, is another."""
    span = {"Range": f"bytes={start}-{start + len(into) - 1}"}
    with CLIENT.ask("GET", url, {**headers, **span}) as answer:
        if answer.status in (412, 416):
            raise changed(path)
        answer.refuse()
        whole = answer.status == 200 and start == 0 and len(into) == facts.size
        if answer.status != 206 and not whole:
            raise OSError(
                errno.EOPNOTSUPP,
                "its server gives no ranges of bytes: download it first",
                str(path),
            )
        total = answer.header("Content-Range").rpartition("/")[2]
        other = total.isdigit() and int(total) != facts.size
        if other or (version and version_in(answer) not in ("", facts.version)):
            raise changed(path)
        if answer.status == 206 and not answer.header("Content-Range").startswith(
            f"bytes {start}-"
        ):
            raise OSError(errno.EIO, "its server sent another range than was asked for", str(path))
        return answer.read_into(into)
