"""Addresses of stores, such as `s3://bucket/model`, which stand where a path is expected."""

from __future__ import annotations

import re
from pathlib import Path

# a Path has one slash where there were two
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:)/+(.*)", re.DOTALL)


_ROOT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def address(path: Path) -> str | None:
    """`path` as the address `scheme://…` that was meant, or None for a path."""
    match = _ADDRESS.match(str(path))
    return None if match is None else f"{match[1]}//{match[2]}"


def absolute(path: Path) -> Path:
    """A path from the root of its store: an address is one already, as is `memory://` itself."""
    if address(path) is not None or _ROOT.fullmatch(str(path)):
        return path
    return path.absolute()
