"""Reading a JSON file that a user or another program wrote: bounded, with one kind of error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ckptforge.errors import FormatError, InputNotFoundError

MAX_BYTES = 256 * 1024 * 1024


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `InputNotFoundError` if it can't be read, `FormatError` if it is something else."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FormatError(f"{path}: over {MAX_BYTES} bytes, too large for what it should be.")
        content = path.read_bytes()
    except OSError as error:
        raise InputNotFoundError(f"{path}: can't be read: {error.strerror}.") from error
    return parse_object(content, str(path))


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `content`. Raises `FormatError`, which names it as `where`, if it is something else."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: isn't valid JSON ({error}).") from error
    if not isinstance(found, dict):
        raise FormatError(f"{where}: holds a JSON {type(found).__name__}, expected an object.")
    return found
