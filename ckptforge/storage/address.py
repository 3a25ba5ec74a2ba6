"""Addresses `scheme://…` where a path may stand."""

from __future__ import annotations

import re
from pathlib import Path

from ckptforge.errors import UsageError

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)  # a Path has one slash
_WEB = ("http", "https")


class Address(type(Path())):  # type: ignore[misc]
    """A path that is an address: it is written with both its slashes."""

    __slots__ = ()

    def __str__(self) -> str:
        return address(super().__str__()) or super().__str__()

    def __fspath__(self) -> str:
        return str(self)


def address(path: Path | str) -> str | None:
    """`path` as the address `scheme://…` that was meant, or None for a path."""
    match = _ADDRESS.match(str(path))
    return None if match is None else f"{match[1]}://{match[2]}"


def scheme_of(path: Path) -> str | None:
    """The scheme of an address in small letters; None for a path."""
    match = _ADDRESS.match(str(path))
    return None if match is None else match[1].lower()


def address_of(text: str) -> Path | None:
    """A text as an `Address`; None for a path."""
    return None if address(text) is None else Address(text)


def given_path(text: str) -> Path:
    """What a user gave as a path or an address. Raises `UsageError`, without showing them, for a
    name, password or query in an address: it goes into messages, manifests and plans."""
    match = _ADDRESS.match(text)
    if match is None:
        if not text:
            raise UsageError("a path is empty; name a file or directory, or . for this one.")
        return Path(text)
    scheme, rest = match[1].lower(), match[2]
    host, slash, below = rest.partition("/")
    if "@" in host or (scheme in _WEB and "?" in rest):
        shown = f"{scheme}://{host.rpartition('@')[2]}{slash}{below}".partition("?")[0]
        raise UsageError(
            f"{shown}: the address came with a user's name or a query, and addresses are written "
            "into messages and manifests: leave it out, and log in where the programs of the "
            "service do (for https:// that is ~/.netrc)."
        )
    return Address(text)
