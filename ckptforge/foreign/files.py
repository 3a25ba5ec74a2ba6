"""Small files that a user or another program wrote: reading them whole within a bound, and the
names they may have."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

from ckptforge.errors import CkptforgeError, FormatError, InputNotFoundError
from ckptforge.foreign.paths import has_name, is_file
from ckptforge.storage.files import open_file
from ckptforge.storage.mounts import refuse_address, store_of

_PIECE = 1 << 20
_AT_LEAST = 1 << 12
_CONTROL = re.compile("[\x00-\x1f\x7f/\\\\]")


def read_small(path: Path, limit: int, too_large: type[CkptforgeError] = FormatError) -> bytes:
    """The contents of a regular file, of which no more than `limit` bytes are ever read, whatever
    its size is said to be.

    Raises `InputNotFoundError` if it can't be read or is something else, `too_large` if it goes on.
    """
    content = bytearray()
    with closing(open_file(path)) as reader:
        try:
            expected = max(reader.status().size, _AT_LEAST) + 1
            piece = memoryview(bytearray(min(limit + 1, expected, _PIECE)))
            while len(content) <= limit and (count := reader.read_into(len(content), piece)):
                content += piece[:count]
        except OSError as error:
            raise InputNotFoundError(f"{path}: can't be read: {error.strerror}.") from error
    if len(content) > limit:
        raise too_large(f"{path}: over {limit} bytes, too large for what it should be.")
    return bytes(content)


def is_there(path: Path) -> bool:
    """Whether a file of a fixed name is there. Raises `InputNotFoundError` for anything else of
    that name: a directory, a pipe, a link to nowhere."""
    if is_file(path):
        return True
    if has_name(path):
        raise InputNotFoundError(f"{path}: isn't a regular file.")
    return False


def is_file_name(name: object) -> bool:
    """Whether a text that stood in a file is the name of a file in one directory, and not a way out
    of it."""
    if not isinstance(name, str) or name in ("", ".", "..") or _CONTROL.search(name):
        return False
    try:
        return len(name.encode()) <= 255
    except UnicodeEncodeError:
        return False


def named(directory: Path, ending: str) -> list[Path]:
    """What in a directory has a name with this ending, by name; nothing if it can't be listed."""
    try:
        return [directory / name for name in _names(directory) if name.endswith(ending)]
    except InputNotFoundError:
        return []


def entries_of(directory: Path) -> list[Path]:
    """What lies in a directory, by name. Raises `InputNotFoundError` if it can't be listed."""
    return [directory / name for name in _names(directory)]


def _names(directory: Path) -> list[str]:
    try:
        return sorted(store_of(directory).names(directory))
    except OSError as error:
        refuse_address(directory)
        if isinstance(error, NotADirectoryError):
            raise InputNotFoundError(
                f"{directory}: is one file, expected a directory; name that."
            ) from error
        raise InputNotFoundError(f"{directory}: can't be listed: {error.strerror}.") from error
