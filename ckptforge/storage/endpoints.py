"""Where the service is that holds a bucket, as a user has said it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from ckptforge.errors import UsageError
from ckptforge.spelling import option
from ckptforge.storage.address import scheme_of

_SCHEMES = ("s3", "obs")
_said: dict[tuple[str, str], str] = {}


def bucket_of(path: Path) -> tuple[str, str, str]:
    """(scheme, bucket, key) of an address."""
    scheme, _, rest = str(path).partition(":")
    bucket, _, key = rest.lstrip("/").partition("/")
    return scheme.lower(), bucket, key


def use_endpoint(endpoint: str, given: Iterable[object]) -> None:
    """The buckets of the addresses among what is given are at `endpoint`, for the whole process:
    tensors may be read long after a call. Raises `UsageError` for what is no address of a service,
    or has a user's name in it."""
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.query:
        raise UsageError(
            f"{option('endpoint')}: expected https:// and the name of a service, without a user's "
            "name, a password or a query."
        )
    for one in given:
        if isinstance(one, list | tuple):
            use_endpoint(endpoint, one)
        elif isinstance(one, str | Path) and scheme_of(path := Path(one)) in _SCHEMES:
            scheme, bucket, _ = bucket_of(path)
            _said[scheme, bucket] = endpoint.rstrip("/")


def endpoint_of(scheme: str, bucket: str) -> str | None:
    """Where a bucket is, if that was said."""
    return _said.get((scheme, bucket))


def said_endpoints() -> dict[tuple[str, str], str]:
    """(scheme, bucket) → where it was said to be, to be told to another process."""
    return dict(_said)


def use_said(endpoints: Mapping[tuple[str, str], str]) -> None:
    """Takes what another process was told."""
    _said.update(endpoints)
