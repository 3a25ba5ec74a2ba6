"""Where the service is that holds a bucket, as a user has said it in a call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from ckptforge.errors import UsageError
from ckptforge.spelling import option
from ckptforge.storage.address import scheme_of

_SCHEMES = ("s3", "obs")
Endpoints = Mapping[tuple[str, str], str]  # (scheme, bucket) → where it is
_EVERY = ("", "")  # stands for the buckets that a call doesn't name itself, but a recipe of it
_said: ContextVar[Endpoints] = ContextVar("_said", default=MappingProxyType({}))


def bucket_of(path: Path) -> tuple[str, str, str]:
    """(scheme, bucket, key) of an address."""
    scheme, _, rest = str(path).partition(":")
    bucket, _, key = rest.lstrip("/").partition("/")
    return scheme.lower(), bucket, key


def endpoints_of(endpoint: str, given: Iterable[object]) -> Endpoints:
    """The buckets of the addresses among what is given, and all others, at `endpoint`. Raises
    `UsageError` for what is no address of a service, or has a user's name in it."""
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.query:
        raise UsageError(
            f"{option('endpoint')}: expected https:// and the name of a service, without a user's "
            "name, a password or a query."
        )
    found: dict[tuple[str, str], str] = {_EVERY: endpoint.rstrip("/")}
    for one in given:
        if isinstance(one, list | tuple):
            found |= endpoints_of(endpoint, one)
        elif isinstance(one, str | Path) and scheme_of(path := Path(one)) in _SCHEMES:
            scheme, bucket, _ = bucket_of(path)
            found[scheme, bucket] = endpoint.rstrip("/")
    return found


@contextmanager
def at_endpoints(endpoints: Endpoints) -> Iterator[None]:
    """Buckets are there, beside those that were said, in this thread and in those that work for it
    (`run/pool.py`)."""
    before = _said.set({**_said.get(), **endpoints})
    try:
        yield
    finally:
        _said.reset(before)


def endpoint_of(path: Path) -> str | None:
    """Where the bucket of an address is, if that was said."""
    scheme, bucket, _ = bucket_of(path)
    if scheme not in _SCHEMES:
        return None
    said = _said.get()
    return said.get((scheme, bucket), said.get(_EVERY))


def said_endpoints() -> dict[tuple[str, str], str]:
    """(scheme, bucket) → where it was said to be, to be told to another process."""
    return dict(_said.get())
