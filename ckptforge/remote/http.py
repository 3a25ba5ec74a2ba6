"""Requests by HTTP, with connections that are kept, redirects and proxies, without any package.

Credentials come from ~/.netrc, or NETRC; a header with a token isn't sent on to another host.
"""

from __future__ import annotations

import errno
import netrc
import os
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from ckptforge.remote.objects import Passing
from ckptforge.version import __version__

_TIMEOUT = 30.0  # seconds without a byte
_HERE = {"localhost", "127.0.0.1", "::1"}
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_MOST_REDIRECTS = 8
_REDIRECTS = {301, 302, 303, 307, 308}
_FAULTS = (ConnectionError, TimeoutError, HTTPException, ssl.SSLEOFError, ssl.SSLZeroReturnError)


class Answer:
    """What a server said: `url` is where it was found in the end."""

    def __init__(self, url: str, response: HTTPResponse) -> None:
        self.url, self.response, self.status = url, response, response.status

    def header(self, name: str) -> str:
        """A header, "" where it isn't there."""
        return self.response.getheader(name) or ""

    def read_into(self, into: memoryview) -> int:
        """Fills a buffer with the body; returns how many bytes came. Raises `Passing`."""
        done = 0
        try:
            while done < len(into) and (count := self.response.readinto(into[done:])):
                done += count
        except _FAULTS as error:
            raise Passing(_reason(error), done) from error
        return done

    def read(self, limit: int) -> bytes:
        """The whole body. Raises `Passing`, and `OSError` where it is larger than that."""
        try:
            body = self.response.read(limit + 1)
        except _FAULTS as error:
            raise Passing(_reason(error)) from error
        if len(body) > limit:
            raise OSError(errno.EFBIG, f"the answer is over {limit} bytes")
        return body

    def refuse(self) -> None:
        """Raises `Passing` or `OSError` for a status that is an error."""
        if self.status in _PASSING:
            after = self.header("Retry-After")
            wait = float(after) if after.isdigit() else 0.0
            raise Passing(f"the server says {self.status} {self.response.reason}", wait=wait)
        if self.status in (401, 403):
            raise PermissionError(errno.EACCES, f"access is denied ({self.status}); log in first")
        if self.status in (404, 410):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if self.status >= 400:
            raise OSError(errno.EIO, f"the server says {self.status} {self.response.reason}")


class Client:
    """Connections to servers, shared by threads."""

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._idle: dict[tuple[str, str], list[HTTPConnection]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def ask(
        self, method: str, url: str, headers: Mapping[str, str] | None = None
    ) -> Iterator[Answer]:
        """Makes a request and follows redirects; the caller reads the body. Raises `Passing` where
        no answer comes, and `OSError`."""
        sent = {"User-Agent": f"ckptforge/{__version__}", "Accept-Encoding": "identity"}
        sent |= headers or {}
        for _ in range(_MOST_REDIRECTS):
            at = urlsplit(url)
            _refuse_unsafe(at)
            with self._asking(method, at, sent) as response:
                answer = Answer(url, response)
                target = answer.header("Location")
                if answer.status not in _REDIRECTS or not target:
                    yield answer
                    return
            url = urljoin(url, target)
            if urlsplit(url).netloc != at.netloc:
                sent.pop("Authorization", None)
        raise OSError(errno.ELOOP, "too many redirects")

    @contextmanager
    def _asking(
        self, method: str, at: SplitResult, headers: Mapping[str, str]
    ) -> Iterator[HTTPResponse]:
        """A response; its connection is kept where its body has been read."""
        key = at.scheme, at.netloc
        with self._lock:
            idle = self._idle.setdefault(key, [])
            connection = idle.pop() if idle else _connected(at)
        kept = False
        try:
            response = _answer(connection, method, at, headers)
            yield response
            if not response.isclosed() and response.length == 0:
                response.read()
            kept = response.isclosed() and connection.sock is not None
        finally:
            if kept:
                with self._lock:
                    self._idle[key].append(connection)
            else:
                connection.close()


def _connected(at: SplitResult) -> HTTPConnection:
    host = at.hostname or ""
    proxy = None if proxy_bypass(host) else getproxies().get(at.scheme)
    if proxy is None or host in _HERE:
        if at.scheme == "http":
            return HTTPConnection(host, at.port, timeout=_TIMEOUT)
        return HTTPSConnection(host, at.port, timeout=_TIMEOUT)
    through = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    connection = HTTPSConnection(through.hostname or "", through.port or 3128, timeout=_TIMEOUT)
    connection.set_tunnel(host, at.port or 443)
    return connection


def _answer(
    connection: HTTPConnection, method: str, at: SplitResult, headers: Mapping[str, str]
) -> HTTPResponse:
    target = f"{at.path or '/'}{'?' if at.query else ''}{at.query}"
    own = {} if "Authorization" in headers else _login(at.hostname or "")
    try:
        connection.request(method, target, headers={**headers, **own})
        return connection.getresponse()
    except socket.gaierror as error:
        raise Passing(f"the name {at.hostname} isn't found ({error.strerror})") from error
    except _FAULTS as error:
        raise Passing(_reason(error)) from error


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text if text and isinstance(text, str) else type(error).__name__


def _refuse_unsafe(at: SplitResult) -> None:
    if at.scheme == "https" or (at.scheme == "http" and at.hostname in _HERE):
        return
    raise PermissionError(errno.EACCES, f"{at.scheme}:// is read from this machine only")


@cache
def _logins() -> netrc.netrc | None:
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC"))
    return None


def _login(host: str) -> dict[str, str]:
    from base64 import b64encode

    known = _logins()
    found = None if known is None else known.authenticators(host)
    if found is None:
        return {}
    word = b64encode(f"{found[0]}:{found[2]}".encode()).decode()
    return {"Authorization": f"Basic {word}"}


CLIENT = Client()
