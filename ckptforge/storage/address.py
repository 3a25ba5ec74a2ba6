"""Addresses of remote stores, which stand where a path is expected."""

from __future__ import annotations

import re
from pathlib import Path

from ckptforge.errors import InputNotFoundError

# a Path has one slash where there were two
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:)/+(.*)", re.DOTALL)


def address(path: Path) -> str | None:
    """`path` as the address `scheme://…` that was meant, or None for a path. A directory of such a
    name is a path."""
    match = _ADDRESS.match(str(path))
    if match is None or Path(match[1]).exists():
        return None
    return f"{match[1]}//{match[2]}"


def refuse_address(path: Path) -> None:
    """Raises `InputNotFoundError` for an address, where an input has not been found."""
    if (found := address(path)) is not None:
        raise InputNotFoundError(
            f"{found}: is an address, and only files and directories are read: download it first."
        )
